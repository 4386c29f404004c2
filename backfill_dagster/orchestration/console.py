"""What a person at a terminal sees of a run: our own words, each failure once, and nothing of the machinery.

The event log and the UI keep everything.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import dagster as dg

from backfill_dagster.monitoring import events
from backfill_dagster.monitoring.structured_log import StructuredLog
from backfill_dagster.orchestration.run_logs import note_console, run_log
from backfill_dagster.orchestration.terminal import attached_terminal, write_to_stderr

if TYPE_CHECKING:
    from collections.abc import Mapping

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


class _StructuredHandler(logging.Handler):
    """Passes on to the structured log of the run what the console is told.

    Before that is open and after it is closed, lines go to the terminal alone, and name nobody: it is not known yet
    how accounts are to be named.
    """

    def __init__(self, fallback: StructuredLog | None) -> None:
        super().__init__()
        self._fallback = fallback

    def emit(self, record: logging.LogRecord) -> None:
        told: Any = getattr(record, "dagster_meta", {})
        log = run_log(told.get("run_id"), told.get("job_tags") or {}) or self._fallback
        if log is None:
            return
        event, message = _event(record), _message(record)
        if event is None:
            if not message.startswith("Dependencies for step"):
                log.message(record.levelno, message)
        elif event.event_type is dg.DagsterEventType.ASSET_OBSERVATION:
            log.message(logging.INFO, message, event=events.PROGRESS, **_progress(event))
        elif event.event_type is dg.DagsterEventType.STEP_FAILURE:
            log.message(logging.ERROR, message, event=events.STEP_FAILED, step=event.step_key)


def _progress(event: dg.DagsterEvent) -> dict[str, Any]:
    """Return the numbers of an observation of how far a stage is."""
    metadata = event.asset_observation_data.asset_observation.metadata
    prefix = "progress/"
    numbers = {name.removeprefix(prefix): value.value for name, value in metadata.items() if prefix in name}
    return {"stage": event.asset_observation_data.asset_observation.asset_key.path[-1], **numbers}


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


def is_interruption(event: dg.DagsterEvent) -> bool:
    """Tell whether a step failed because somebody ended the run."""
    error = event.step_failure_data.error
    while error is not None:
        if error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
            return True
        error = error.cause
    return False


def console_logger(studies: Mapping[str, Study]) -> dg.LoggerDefinition:
    """Return the logger of a code location: it writes to the terminal in the way that the run's study wants."""

    @dg.logger(
        # The fields of Dagster's own console logger, in whose place it is.
        config_schema=dg.Field(
            {
                "log_level": dg.Field(str, is_required=False, default_value="INFO"),
                "name": dg.Field(str, is_required=False, default_value="", description="The study's name."),
            },
            is_required=False,
            default_value={},
        ),
        description="Messages on the terminal: readable ones, or one JSON object a line.",
    )
    def console(context: dg.InitLoggerContext) -> logging.Logger:
        level, study = context.logger_config["log_level"], studies.get(context.logger_config["name"])
        logger = logging.Logger("backfill_dagster.console")
        if context.run_id is not None:
            note_console(context.run_id)
        if study is not None and study.monitoring.log_format == "json":
            log = StructuredLog(
                study.name, context.run_id, level=level, sinks=(write_to_stderr,), anonymous=True
            )
            logger.addHandler(_StructuredHandler(log))
            return logger
        terminal = attached_terminal()
        handler = _TerminalHandler(terminal) if terminal else logging.StreamHandler(sys.stderr)
        handler.setFormatter(_HumanFormatter())
        handler.addFilter(_HumanFilter(level, terminal))
        logger.addHandler(_StructuredHandler(None))
        logger.addHandler(handler)
        return logger

    return console


def console_config(study: Study | None) -> dict[str, Any]:
    """Return the run configuration that puts this logger on the terminal; Dagster takes its own without it."""
    config: dict[str, str] = {"log_level": "INFO" if study is None else study.monitoring.log_level}
    if study is not None:
        config["name"] = study.name
    return {"loggers": {"console": {"config": config}}}


# Of the whole process: a failure passes through a child run and its parent, and is told once.
_TOLD: set[str] = set()
