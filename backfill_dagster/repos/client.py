"""One question to one PDS: an account's repository, a part of it, or what has become of the account.

A server's answers are told apart here: a state of the account (it is settled) or a failure (it may pass).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.network.http import RequestFailedError, RequestFault
from backfill_dagster.network.limits import HostParkedError
from backfill_dagster.repos.outcomes import FailureReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.network.patience import Patience
    from backfill_dagster.network.turns import Turns

_STATES_BY_ERROR = {
    "RepoNotFound": Outcome.NOT_FOUND,
    "RepoTakendown": Outcome.TAKENDOWN,
    "RepoSuspended": Outcome.SUSPENDED,
    "RepoDeactivated": Outcome.DEACTIVATED,
    "RepoDesynchronized": Outcome.DESYNCHRONIZED,
    "RepoThrottled": Outcome.THROTTLED,
    "RepoInactive": Outcome.INACTIVE,
    "AccountTakedown": Outcome.TAKENDOWN,
    "AccountDeactivated": Outcome.DEACTIVATED,
}
_STATES_BY_STATUS = {
    state.value: state
    for state in (
        Outcome.TAKENDOWN,
        Outcome.SUSPENDED,
        Outcome.DELETED,
        Outcome.DEACTIVATED,
        Outcome.DESYNCHRONIZED,
        Outcome.THROTTLED,
    )
}
_FAILURES_BY_FAULT = {
    RequestFault.UNREACHABLE: FailureReason.UNREACHABLE,
    RequestFault.REFUSED_ADDRESS: FailureReason.REFUSED_ADDRESS,
    RequestFault.TIMED_OUT: FailureReason.TIMED_OUT,
    RequestFault.TRUNCATED: FailureReason.TRUNCATED,
    RequestFault.TOO_LARGE: FailureReason.TOO_LARGE,
    RequestFault.BAD_REDIRECT: FailureReason.BAD_REDIRECT,
    RequestFault.BAD_ENCODING: FailureReason.BAD_ENCODING,
    RequestFault.BAD_TLS: FailureReason.UNREACHABLE,
}
_MAX_STATUS_BYTES = 64 * 1024
_MAX_DETAIL = 300


@dataclass(frozen=True, slots=True)
class RepoAnswer:
    """What a request came to: a file on disk if `outcome` is complete (and not yet proven), else why not."""

    outcome: Outcome
    reason: FailureReason | None = None
    detail: str | None = None
    http_status: int | None = None
    server_error: str | None = None
    bytes_received: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DownloadBounds:
    """The largest body in bytes, and the longest time for it in seconds."""

    max_bytes: int
    seconds: float


async def get_repo(
    turns: Turns,
    gate: HostGate,
    origin: str,
    did: str,
    to: Path,
    bounds: DownloadBounds,
    patience: Patience,
) -> RepoAnswer:
    """Download `com.atproto.sync.getRepo` to a file; else like `download`."""
    return await download(
        turns, gate, f"{origin}/xrpc/com.atproto.sync.getRepo", {"did": did}, to, bounds, patience
    )


async def download(
    turns: Turns,
    gate: HostGate,
    url: str,
    params: Mapping[str, str],
    to: Path,
    bounds: DownloadBounds,
    patience: Patience,
) -> RepoAnswer:
    """Download what a method answers about an account to a file, in the host's turn; raises RunOverError.

    An answer that is `rate_limited` comes of pauses that last for longer than the patience with them.
    """
    try:
        done = await turns.download(
            gate,
            url,
            params=params,
            to=to,
            max_bytes=bounds.max_bytes,
            total_timeout=bounds.seconds,
            patience=patience,
        )
    except HostParkedError as error:
        return RepoAnswer(Outcome.FAILED, FailureReason.RATE_LIMITED, detail=str(error))
    except RequestFailedError as error:
        return RepoAnswer(
            Outcome.FAILED, _FAILURES_BY_FAULT[error.kind], detail=str(error.detail)[:_MAX_DETAIL]
        )
    if done.status == 200:
        return RepoAnswer(
            Outcome.COMPLETE,
            http_status=200,
            bytes_received=done.bytes_received,
            seconds=done.seconds,
        )
    answer = classify_error(done.status, done.error_body)
    return RepoAnswer(
        answer.outcome,
        answer.reason,
        answer.detail,
        done.status,
        answer.server_error,
        done.bytes_received,
        done.seconds,
    )


async def get_account_state(
    turns: Turns, gate: HostGate, origin: str, did: str, patience: Patience
) -> Outcome | None:
    """Ask `getRepoStatus` what it calls an account that is not active; None if it does not say.

    `active` is believed before `status`: a server may give no status, or one that is not in the lexicon.
    Raises RunOverError.
    """
    try:
        answer = await turns.get(
            gate,
            f"{origin}/xrpc/com.atproto.sync.getRepoStatus",
            params={"did": did},
            max_bytes=_MAX_STATUS_BYTES,
            patience=patience,
        )
    except (RequestFailedError, HostParkedError):
        return None
    body = _json_object(answer.body)
    if answer.status != 200 or body.get("active") is not False:
        return None
    return _STATES_BY_STATUS.get(str(body.get("status")), Outcome.INACTIVE)


def classify_error(status: int, body: bytes) -> RepoAnswer:
    """Tell an account's state from a failure, in an answer other than 200.

    XRPC names errors in `{"error", "message"}`; a missing repository can also come as a plain InvalidRequest.
    """
    answer = _json_object(body)
    name, message = _text(answer, "error"), _text(answer, "message")
    detail = " ".join((message or body[:_MAX_DETAIL].decode("utf-8", "replace")).split())[:_MAX_DETAIL]
    if status == 429:
        return RepoAnswer(Outcome.FAILED, FailureReason.RATE_LIMITED, detail, status, name)
    if status >= 500:
        return RepoAnswer(Outcome.FAILED, FailureReason.SERVER_ERROR, detail, status, name)
    state = _STATES_BY_ERROR.get(name or "")
    if state is None and name == "InvalidRequest" and (message or "").startswith("Could not find repo"):
        state = Outcome.NOT_FOUND
    if state is not None:
        return RepoAnswer(state, None, detail, status, name)
    return RepoAnswer(Outcome.FAILED, FailureReason.UNEXPECTED_ANSWER, detail, status, name)


def _text(answer: dict[str, object], field: str) -> str | None:
    value = answer.get(field)
    return value[:_MAX_DETAIL] if isinstance(value, str) else None


def _json_object(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
