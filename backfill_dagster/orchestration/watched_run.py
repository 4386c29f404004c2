"""What goes beside a run of a study from begin to end: its structured log, its row of the audit log, its alerts.

A stage of a whole run belongs to that: its lines, counts and alerts are those of the run that somebody started.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dagster._core.log_manager import DagsterLogHandler

from backfill_dagster.errors import BackfillError
from backfill_dagster.metadata_stores.of_study import write_run_metadata
from backfill_dagster.monitoring import events
from backfill_dagster.monitoring.account_names import AccountHashes
from backfill_dagster.monitoring.audit_log import AuditEntry, AuditLog, RunStatus, now
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.monitoring.log_key import log_key
from backfill_dagster.monitoring.structured_log import LogFile, StructuredLog
from backfill_dagster.orchestration.alerts import RunAlerts
from backfill_dagster.orchestration.audit import (
    config_hash,
    outcome_of,
    report_audit_log,
    run_settings,
    started_by,
)
from backfill_dagster.orchestration.run_logs import close_run_log, is_on_console, open_run_log
from backfill_dagster.orchestration.tags import PARENT_TAG
from backfill_dagster.orchestration.terminal import write_to_stderr
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import dagster as dg

    from backfill_dagster.config.study import Study
    from backfill_dagster.orchestration.progress import Standing
    from backfill_dagster.orchestration.resources import StudyLockResource

logger = logging.getLogger(__name__)
_LIBRARY = logging.getLogger("backfill_dagster")

# The runs of this process that are under way, by their identifiers.
_watched: dict[str, WatchedRun] = {}


class WatchedRun:
    """A run that somebody started; every method is called from the thread of the run."""

    def __init__(self, study: Study, run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
        storage = StudyStorage(study.location)
        self._study = study
        self._run = run
        self._instance = instance
        self._ended = ExitStack()
        self._begun = time.monotonic()
        entry = AuditEntry(
            run_id=run.run_id,
            job=run.job_name,
            started_by=started_by(run),
            started_at=now(),
            config_hash=config_hash(study),
            code_version=code_version(),
            settings=run_settings(study, run.run_config),
        )
        self._audit, died = AuditLog(storage).begin(entry)
        self._refusal: BackfillError | None = None
        self._file: LogFile | None = None
        self.log = StructuredLog(study.name, run.run_id)
        try:
            self.log = self._open_log(storage)
        except BackfillError as error:
            # The run is over before it has begun; it is on the audit log, and told of, all the same.
            self._refusal = error
        self.alerts = RunAlerts(study, run, self.log)
        self._listen()
        self.log.emit(
            events.RUN_BEGUN,
            job=run.job_name,
            started_by=entry.started_by,
            code_version=entry.code_version,
            config_hash=entry.config_hash,
        )
        self.alerts.begin(study.monitoring, died)

    def check(self) -> None:
        """Raise what is in the way of the run's beginning: ConfigError or StorageError."""
        if self._refusal is not None:
            raise self._refusal

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell of a stage of the run: that it begins, and how it ends."""
        self._audit.begin_stage(name)
        self.alerts.begin_stage(name)
        begun = time.monotonic()
        # Each child run of Dagster's sets it anew.
        _LIBRARY.setLevel(self._study.monitoring.log_level)
        with events.heard_by(self.log if self.log.is_written else None):
            events.emit(events.STAGE_BEGUN, stage=name)
            try:
                yield
            except BaseException as error:
                told = self._told_of_stage(name, begun)
                self.log.emit(events.STAGE_FAILED, reason=f"{type(error).__name__}: {error}", **told)
                raise
            else:
                self.log.emit(events.STAGE_DONE, **self._told_of_stage(name, begun))
            finally:
                self.alerts.end_stage()

    def count(self, stage: str, counts: Mapping[str, int]) -> None:
        """Add to what the run has counted."""
        self._audit.entry.count(stage, counts)

    def count_rows(self, table: str, rows: int) -> None:
        """Note how many rows a table has now."""
        self._audit.entry.rows[table] = rows

    def follow(self, standing: Callable[[], Standing | None]) -> None:
        """Have the alerts look at how far the stage is."""
        self.alerts.follow(standing)

    def end(self) -> None:
        """Write the run's final row and tell of its end; nothing that goes wrong here is the run's failure."""
        try:
            status, reason = self._outcome()
            self._note_end(status, reason)
            if self._file is not None and self._file.lost:
                logger.warning("%d lines could not be written to %s", self._file.lost, self._file.path)
            self.log.emit(
                events.RUN_DONE,
                job=self._run.job_name,
                status=status.value,
                reason=reason,
                duration=time.monotonic() - self._begun,
            )
            self.alerts.end(status, reason)
        finally:
            _watched.pop(self._run.run_id, None)
            self._ended.close()

    def _outcome(self) -> tuple[RunStatus, str | None]:
        try:
            return outcome_of(self._instance, self._run)
        except Exception as error:  # noqa: BLE001  Dagster's storage has errors of its own
            return RunStatus.FAILED, f"Dagster's history does not tell how it ended: {error}"

    def _note_end(self, status: RunStatus, reason: str | None) -> None:
        try:
            rows = self._audit.finish(status, reason, now())
            report_audit_log(self._instance, self._study, rows)
            write_run_metadata(self._study)
        except Exception as error:  # noqa: BLE001
            logger.warning("the end of this run is not noted everywhere: %s", error)

    def _open_log(self, storage: StudyStorage) -> StructuredLog:
        monitoring = self._study.monitoring
        sinks: list[Callable[[bytes], None]] = []
        if monitoring.log_format == "json":
            sinks.append(write_to_stderr)
        if monitoring.log_file is not None:
            file = LogFile(monitoring.log_file)
            self._ended.callback(file.close)
            sinks.append(file.write)
            self._file = file
        return StructuredLog(
            self._study.name,
            self._run.run_id,
            level=monitoring.log_level,
            sinks=tuple(sinks),
            hashes=AccountHashes(log_key(storage)) if monitoring.hash_dids and sinks else None,
        )

    def _listen(self) -> None:
        handler, former = _LibraryHandler(self._run.run_id, self.log, self.alerts), _LIBRARY.level
        open_run_log(self._run.run_id, self.log)
        self._ended.callback(close_run_log, self._run.run_id)
        _LIBRARY.addHandler(handler)
        self._ended.callback(_LIBRARY.removeHandler, handler)
        self._ended.callback(_LIBRARY.setLevel, former)
        _LIBRARY.setLevel(self._study.monitoring.log_level)

    def _told_of_stage(self, name: str, begun: float) -> dict[str, Any]:
        counts = self._audit.entry.counts.get(name)
        return {"stage": name, "duration": time.monotonic() - begun, "counts": counts}


class _LibraryHandler(logging.Handler):
    """Passes on what this package logs in words, unless the run's console does; either is a sign of life."""

    def __init__(self, run_id: str, log: StructuredLog, alerts: RunAlerts) -> None:
        super().__init__()
        self._run_id = run_id
        self._log = log
        self._alerts = alerts

    def emit(self, record: logging.LogRecord) -> None:
        self._alerts.note_life()
        if is_on_console(self._run_id) and _is_captured():
            return
        captured = getattr(record, "dagster_meta", None)
        self._log.message(record.levelno, captured["orig_message"] if captured else record.getMessage())


def _is_captured() -> bool:
    """Tell whether Dagster takes what this package logs, and so the console is told of it."""
    handlers = [*_LIBRARY.handlers, *logging.getLogger().handlers]
    return any(isinstance(handler, DagsterLogHandler) for handler in handlers)


def watch(
    study: Study, run: dg.DagsterRun, instance: dg.DagsterInstance, study_lock: StudyLockResource
) -> WatchedRun:
    """Return what goes beside a run; it begins with the first call, and ends with the run.

    Raises StorageError, and ConfigError for a log file that cannot be written.
    """
    watched = watched_run(run)
    if watched is None:
        watched = _watched[run.run_id] = WatchedRun(study, run, instance)
        study_lock.at_end(watched.end)
    watched.check()
    return watched


def watched_run(run: dg.DagsterRun) -> WatchedRun | None:
    """Return what goes beside a run, or beside the one whose stage it is; None if that is not of this process."""
    return watched_by_id(run.run_id, run.tags)


def watched_by_id(run_id: str | None, tags: Mapping[str, str]) -> WatchedRun | None:
    """Do the same by the run's identifier and tags."""
    for candidate in (run_id, tags.get(PARENT_TAG)):
        if candidate in _watched:
            return _watched[candidate]
    return None


def count(context: dg.AssetExecutionContext | dg.OpExecutionContext, stage: str, **counts: int) -> None:
    """Add to what the run of this context has counted."""
    watched = watched_run(context.run)
    if watched is not None:
        watched.count(stage, counts)


def count_rows(context: dg.AssetExecutionContext, table: str, rows: int) -> None:
    """Note how many rows a table has after this run."""
    watched = watched_run(context.run)
    if watched is not None:
        watched.count_rows(table, rows)
