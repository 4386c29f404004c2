"""What a person at a terminal sees of a run: our own words, each failure once, and nothing of the machinery.

The event log and the UI keep everything.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import dagster as dg

from backfill_dagster.orchestration.terminal import attached_terminal

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.orchestration.terminal import Terminal


class _HumanFormatter(logging.Formatter):
    """A time, a message; a level only where it is not plain information."""

    def __init__(self) -> None:
        super().__init__(datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return f"{self.formatTime(record, self.datefmt)}  {level}{_message(record)}"


class _HumanFilter(logging.Filter):
    """Lets our messages through, and of Dagster's events how far a stage is, and why a step failed, once."""

    def __init__(self, level: str, terminal: Terminal | None) -> None:
        super().__init__()
        self._level = logging.getLevelNamesMapping()[level]
        self._terminal = terminal

    def filter(self, record: logging.LogRecord) -> bool:
        event = _event(record)
        if event is None:
            # What follows from a failure that was told already, or tells it again.
            is_echo = _message(record).startswith("Dependencies for step") or _message(record) in _TOLD
            return record.levelno >= self._level and not is_echo
        if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION:
            # The bar says the same, and sooner.
            return self._level <= logging.INFO and not (self._terminal and self._terminal.has_bar)
        if event.event_type is not dg.DagsterEventType.STEP_FAILURE or _message(record) in _TOLD:
            return False
        _TOLD.add(_message(record))
        return True


class _TerminalHandler(logging.Handler):
    """Writes to the terminal itself, above the bar that it may have; a step's stderr is a file."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        terminal.has_log = True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._terminal.print(self.format(record))
        except OSError:  # it was closed; the event log has all of it
            self.handleError(record)


def _event(record: logging.LogRecord) -> dg.DagsterEvent | None:
    event: dg.DagsterEvent | None = getattr(record, "dagster_meta", {}).get("dagster_event")
    return event


def _message(record: logging.LogRecord) -> str:
    event = _event(record)
    if event is not None and event.event_type is dg.DagsterEventType.STEP_FAILURE:
        return failure_reason(event)
    if event is not None and event.event_type is dg.DagsterEventType.ASSET_OBSERVATION:
        return str(event.asset_observation_data.asset_observation.description)
    return str(getattr(record, "dagster_meta", {}).get("orig_message", record.getMessage()))


def failure_reason(event: dg.DagsterEvent) -> str:
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
    terminal = attached_terminal()
    handler = _TerminalHandler(terminal) if terminal else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_HumanFormatter())
    handler.addFilter(_HumanFilter(context.logger_config["log_level"], terminal))
    logger.addHandler(handler)
    return logger


def console_config(study: Study | None) -> dict[str, Any]:
    """Return the run configuration that puts this logger on the terminal; Dagster takes its own without it."""
    level = "INFO" if study is None else study.monitoring.log_level
    return {"loggers": {"console": {"config": {"log_level": level}}}}


# Of the whole process: a failure passes through a child run and its parent, and is told once.
_TOLD: set[str] = set()
