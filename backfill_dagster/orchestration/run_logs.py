"""The structured logs of the runs of this process, by their identifiers; the console passes on what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.orchestration.tags import PARENT_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.monitoring.structured_log import StructuredLog

_logs: dict[str, StructuredLog] = {}
# Runs that our own console logger is told of: Dagster takes one of its own if a run's configuration names none.
_on_console: set[str] = set()


def open_run_log(run_id: str, log: StructuredLog) -> None:
    """Have what is said in a run, and in its stages, go to a log as well."""
    _logs[run_id] = log


def close_run_log(run_id: str) -> None:
    """Undo that."""
    _logs.pop(run_id, None)


def run_log(run_id: str | None, tags: Mapping[str, str]) -> StructuredLog | None:
    """Return the log of a run, or of the one whose stage it is; None if there is none yet, or no longer."""
    for candidate in (run_id, tags.get(PARENT_TAG)):
        if candidate in _logs:
            return _logs[candidate]
    return None


def note_console(run_id: str) -> None:
    """Take note that the console is told of a run."""
    _on_console.add(run_id)


def is_on_console(run_id: str | None) -> bool:
    """Tell whether the console is told of a run, and so its log is."""
    return run_id in _on_console
