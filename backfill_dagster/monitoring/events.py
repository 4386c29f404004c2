"""The events of a run that the structured log tells of: a closed set of stable names.

Stages call `emit`, which costs next to nothing while nobody listens. Who listens belongs to the context that a run
works in, so that two studies in one process do not hear each other. These events name accounts, and so never pass
through the logging that Dagster captures into its event log.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Event:
    """A kind of event: its stable name, its weight as `logging` counts it, what it says, and the fields it has."""

    name: str
    level: int
    message: str
    fields: tuple[str, ...] = ()


RUN_BEGUN = Event(
    "run_begun",
    logging.INFO,
    "a run of the study begins",
    ("job", "started_by", "code_version", "config_hash"),
)
RUN_DONE = Event("run_done", logging.INFO, "a run of the study is over", ("job", "status", "reason"))
STAGE_BEGUN = Event("stage_begun", logging.INFO, "a stage begins", ("stage",))
STAGE_DONE = Event("stage_done", logging.INFO, "a stage is done", ("stage", "counts"))
STAGE_FAILED = Event("stage_failed", logging.ERROR, "a stage has failed", ("stage", "reason", "counts"))
HOST_BEGUN = Event("host_begun", logging.INFO, "a host has its turn", ("accounts",))
HOST_DONE = Event(
    "host_done",
    logging.INFO,
    "a host is done with",
    ("outcomes", "reasons", "records", "bytes", "requests", "pauses", "left"),
)
HOST_PARKED = Event("host_parked", logging.WARNING, "a host asks to be left alone", ("seconds", "number"))
PACK_COMMITTED = Event("pack_committed", logging.INFO, "a pack is stored", ("accounts", "records", "bytes"))
PACK_CONVERTED = Event("pack_converted", logging.INFO, "a pack is turned into records", ("records",))
ACCOUNT_SETTLED = Event(
    "account_settled",
    logging.INFO,
    "an account is settled",
    ("state", "bytes", "records", "attempts", "http_status", "repo_rev", "detail"),
)
ACCOUNT_FAILED = Event(
    "account_failed",
    logging.WARNING,
    "an account could not be fetched",
    ("state", "reason", "bytes", "records", "attempts", "http_status", "repo_rev", "detail"),
)
ALERT = Event("alert", logging.WARNING, "somebody is told", ("kind", "subject", "text"))
# What is said in words, by this package or by Dagster.
PROGRESS = Event(
    "progress",
    logging.INFO,
    "",
    ("stage", "<unit>_done", "<unit>_total", "<unit>_per_second", "seconds_passed", "seconds_to_go"),
)
MESSAGE = Event("message", logging.INFO, "")
STEP_FAILED = Event("step_failed", logging.ERROR, "", ("step",))

EVENTS = (
    *(RUN_BEGUN, RUN_DONE, STAGE_BEGUN, STAGE_DONE, STAGE_FAILED, HOST_BEGUN, HOST_DONE, HOST_PARKED),
    *(PACK_COMMITTED, PACK_CONVERTED, ACCOUNT_SETTLED, ACCOUNT_FAILED, PROGRESS, ALERT),
    *(MESSAGE, STEP_FAILED),
)


class Listener(Protocol):
    """Who is told of events."""

    def emit(self, event: Event, **fields: Any) -> None:
        """Take note of an event; never raises."""


_listener: ContextVar[Listener | None] = ContextVar("backfill_dagster_event_listener", default=None)


def emit(event: Event, **fields: Any) -> None:
    """Tell whoever listens in this context; `host`, `did`, `pack` and `duration` (seconds) are common fields."""
    listener = _listener.get()
    if listener is not None:
        listener.emit(event, **fields)


def is_heard() -> bool:
    """Tell whether anybody listens: what is told of many things at once need not be put together if not."""
    return _listener.get() is not None


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Have this listener told of the events of the block, and of the tasks that are begun in it."""
    former = _listener.get()
    _listener.set(listener)
    try:
        yield
    finally:
        # Set rather than reset: a generator may be closed in another context than it was begun in.
        _listener.set(former)
