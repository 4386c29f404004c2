"""Asks a Dagster webserver by GraphQL over HTTP: bounded in time and size, every failure one of a closed set."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import httpx

from backfill_dagster.api.errors import DagsterAnswerError, DagsterTimeoutError, DagsterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECT_SECONDS = 5.0
_MAX_BYTES = 32 * 2**20
_MAX_SHOWN = 300
# It would write the address, which may hold a password, into every log that listens.
logging.getLogger("httpx").setLevel(logging.WARNING)


class GraphQL:
    """A Dagster webserver. Its address may hold a password, so that no error names it."""

    def __init__(
        self, url: str, *, timeout_seconds: float = 30, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = f"{url}/graphql"
        self._seconds = timeout_seconds
        self._client = httpx.Client(follow_redirects=False, transport=transport)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, document: str, variables: Mapping[str, object], *, seconds: float | None = None
    ) -> dict[str, Any]:
        """Return the data of a query or mutation; raises a DagsterError.

        `seconds` is how long this answer may take, if it is one that takes longer than others.
        """
        seconds = seconds or self._seconds
        status, body = self._post({"query": document, "variables": dict(variables)}, seconds)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise DagsterAnswerError(
                f"what stands at BACKFILL_DAGSTER_URL answers HTTP {status} and no JSON: is it dagster-webserver?"
            ) from None
        if not isinstance(answer, dict) or answer.get("errors") or not isinstance(answer.get("data"), dict):
            raise DagsterAnswerError(
                f"Dagster's webserver answers with an error: {_complaint(answer, status)}"
            )
        return dict(answer["data"])

    def _post(self, question: dict[str, object], seconds: float) -> tuple[int, bytes]:
        deadline = time.monotonic() + seconds
        patience = httpx.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds))
        try:
            with self._client.stream("POST", self._url, json=question, timeout=patience) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _MAX_BYTES:
                        raise DagsterAnswerError(
                            f"Dagster's webserver answers with more than {_MAX_BYTES:,} bytes"
                        )
                    # The client's own limit is one of silence, which an answer in drops keeps.
                    if time.monotonic() > deadline:
                        raise DagsterTimeoutError(_too_slow(seconds))
                return response.status_code, bytes(body)
        except httpx.ConnectTimeout:
            raise DagsterUnreachableError("Dagster's webserver does not answer; is it running?") from None
        except httpx.TimeoutException:
            raise DagsterTimeoutError(_too_slow(seconds)) from None
        except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.ProxyError):
            raise DagsterUnreachableError("Dagster's webserver cannot be reached; is it running?") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DagsterAnswerError(
                f"the connection to Dagster's webserver broke off ({type(error).__name__})"
            ) from None


def _too_slow(seconds: float) -> str:
    return f"Dagster's webserver has not answered within {seconds:g} s"


def _complaint(answer: Any, status: int) -> str:
    errors = answer.get("errors") if isinstance(answer, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    message = first.get("message") if isinstance(first, dict) else None
    return str(message)[:_MAX_SHOWN] if message else f"HTTP {status}, and no data"
