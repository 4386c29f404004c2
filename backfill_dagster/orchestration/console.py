"""What a person at a terminal sees of a run: our own words, each failure once, and nothing of the machinery.

The event log and the UI keep everything.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from backfill_dagster.config import Study


class _HumanFormatter(logging.Formatter):
    """A time, a message; a level only where it is not plain information."""

    def __init__(self) -> None:
        super().__init__(datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        message = str(meta.get("orig_message", record.getMessage()))
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return f"{self.formatTime(record, self.datefmt)}  {level}{message}"


class _HumanFilter(logging.Filter):
    """Lets our messages through, and of Dagster's events only why a step failed, once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        event = meta.get("dagster_event")
        if event is None:
            # What follows from a failure that was told already.
            return not str(meta.get("orig_message", "")).startswith("Dependencies for step")
        if event.event_type_value != "STEP_FAILURE":
            return False
        message = _reason(event)
        if message in self._told:
            return False
        self._told.add(message)
        meta["orig_message"] = message
        return True


def _reason(event: dg.DagsterEvent) -> str:
    """Say what a failed step died of: the innermost cause, without its stack."""
    failure = event.step_failure_data
    if failure.user_failure_data is not None and failure.user_failure_data.description:
        return str(failure.user_failure_data.description)
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    if error is None:
        return str(event.message)
    if error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
        return "Interrupted. What was done is kept: run the same again to go on."
    return str(error.message).strip()


@dg.logger(
    config_schema=dg.Field(
        {"log_level": dg.Field(str, is_required=False, default_value="INFO")},
        is_required=False,
        default_value={},
    ),
    description="Readable messages on the terminal.",
)
def human_console(context: dg.InitLoggerContext) -> logging.Logger:
    """Return the logger that writes to the terminal."""
    logger = logging.Logger("backfill_dagster.console")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_HumanFormatter())
    handler.addFilter(_FILTER)
    logger.addHandler(handler)
    logger.setLevel(context.logger_config["log_level"])
    return logger


def console_config(study: Study | None) -> dict[str, Any]:
    """Return the run configuration that puts this logger on the terminal; Dagster takes its own without it."""
    level = "INFO" if study is None else study.monitoring.log_level
    return {"loggers": {"console": {"config": {"log_level": level}}}}


# One for the process: a failure passes through a child run and its parent, and is told once.
_FILTER = _HumanFilter()
