"""Examples of requests and answers, as the documentation at `/docs` shows them."""

from __future__ import annotations

from typing import Any

from backfill_dagster.api.models import ErrorAnswer

_JOB = "7f2b1b52-8d4e-4f0c-9a43-2f3c1d0a5b11"
_CHILD = "0c9d6a0e-4b1f-4c3a-8a51-6f1f4f0e7d22"
_PROGRESS = {
    "unit": "accounts",
    "done": 31250,
    "total": 383598,
    "percent": 8.1,
    "per_second": 41.7,
    "seconds_to_go": 8449.8,
    "at": "2026-11-22T10:12:40Z",
    "details": {"hosts": 339, "hosts_done": 61, "failed": 12, "failures_by_reason": {"timed_out": 12}},
}

HEALTHY = {"status": "ok"}
STARTED = {"job_id": _JOB, "config": "demo", "mode": "backfill", "state": "queued"}
CANCELED = {"job_id": _JOB, "state": "canceling"}
STORED = {"name": "pilot", "created": True}
CONFIGS = {
    "configs": [
        {
            "name": "demo",
            "state": "ready",
            "description": "Sixty made-up accounts on a sandbox network; needs no internet.",
            "version": "1.0",
            "error": None,
        },
        {
            "name": "pilot",
            "state": "invalid",
            "description": None,
            "version": None,
            "error": "configs/pilot.yaml: backfill.source: is missing",
        },
    ]
}
STATUS = {
    "job_id": _JOB,
    "config": "demo",
    "job": "demo",
    "state": "running",
    "started_by": "api:ana",
    "created_at": "2026-11-22T10:00:00Z",
    "started_at": "2026-11-22T10:00:04Z",
    "ended_at": None,
    "stage": "fetch",
    "progress": _PROGRESS,
    "stages": [
        {
            "stage": "fetch",
            "run_id": _CHILD,
            "state": "running",
            "started_at": "2026-11-22T10:00:09Z",
            "ended_at": None,
            "progress": _PROGRESS,
        }
    ],
    "counts": None,
    "errors": [],
}
_YAML = """backfill:
  name: pilot
  source:
    type: inline
    dids: ["did:plc:ewvi7nxzyoun6zhxrhs64oiz"]
  time_range: {start_date: "2024-09-27", end_date: "2024-12-02"}
"""


def _requests(**examples: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    named = {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}
    return {"requestBody": {"content": {"application/json": {"examples": named}}}}


STARTS = _requests(
    stored=("A stored config", {"config": "demo"}),
    gently=(
        "What failed before, at a slower pace",
        {"config": "demo", "mode": "retry_failed", "settings": {"requests_per_second": 2}},
    ),
    some=(
        "Single accounts",
        {"config": "demo", "settings": {"only_dids": ["did:plc:ewvi7nxzyoun6zhxrhs64oiz"]}},
    ),
    whole=("A whole YAML", {"yaml": _YAML}),
)
STORES = _requests(study=("A small study", {"yaml": _YAML}))

_ERRORS: dict[int, tuple[str, dict[str, Any]]] = {
    400: (
        "The body is no text",
        {"code": "bad_request", "message": "There was an error parsing the body"},
    ),
    401: (
        "No token, or none that is known",
        {
            "code": "unauthorized",
            "message": "needs one header `Authorization: Bearer <token>` with a token that is known",
        },
    ),
    403: (
        "The token's scopes do not allow it",
        {"code": "forbidden", "message": "needs a token with the scope run"},
    ),
    404: (
        "There is no such config or job",
        {"code": "not_found", "message": "config = 'dmeo': there is no such config"},
    ),
    409: (
        "It does not go with how things stand",
        {
            "code": "conflict",
            "message": f"the job {_JOB} is at work on demo: wait for it, or cancel it first",
        },
    ),
    413: ("The body is too large", {"code": "too_large", "message": "Content Too Large"}),
    422: (
        "The request is wrong",
        {
            "code": "invalid",
            "message": "the request is not as the docs say",
            "fields": [{"field": "body.mode", "message": "Input should be 'backfill', 'refresh', …"}],
        },
    ),
    429: (
        "Too often; `Retry-After` says in how many seconds again",
        {"code": "too_many", "message": "too many requests with this token"},
    ),
    502: (
        "Dagster's webserver answers with an error",
        {
            "code": "dagster_answer",
            "message": "Dagster has no code location 'backfill_dagster' loaded: no such location",
        },
    ),
    503: (
        "Dagster's webserver cannot be reached, or the configs folder not used",
        {
            "code": "dagster_unreachable",
            "message": "Dagster's webserver cannot be reached; is it running?",
        },
    ),
    504: (
        "Dagster's webserver is too slow",
        {"code": "dagster_timeout", "message": "Dagster's webserver has not answered within 30 s"},
    ),
}


def success(status: int, example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the answer to a request that is in order."""
    return {status: {"content": {"application/json": {"example": example}}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of these errors."""
    return {
        status: {
            "description": _ERRORS[status][0],
            "model": ErrorAnswer,
            "content": {"application/json": {"example": {"error": _ERRORS[status][1]}}},
        }
        for status in statuses
    }
