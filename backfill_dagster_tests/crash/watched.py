"""What goes beside a run, in the programs that crash tests kill: its logs and its messages, without Dagster."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from backfill_dagster.config.study import Study
from backfill_dagster.monitoring import events
from backfill_dagster.monitoring.alerts import Alert, AlertKind
from backfill_dagster.monitoring.audit_log import FOLDER, AuditEntry, AuditLog, RunStatus
from backfill_dagster.monitoring.log_key import log_key
from backfill_dagster.monitoring.outbox import PENDING, Outbox, tell
from backfill_dagster.monitoring.structured_log import LogFile, StructuredLog
from backfill_dagster.monitoring.webhook import AlertError
from backfill_dagster.storage import StudyStorage

LOG_KEY = "log.jsonl"


@contextmanager
def watched(study: Study, task: str, dids: Sequence[str] = ()) -> Iterator[None]:
    """Have a run write its lines, its row and two messages, of which the first is not taken at once.

    One line for each of these accounts, whatever becomes of it.
    """
    storage, run_id = StudyStorage(study.root), uuid.uuid4().hex
    entry = AuditEntry(run_id, task, "crash test", datetime.now(UTC), "0" * 16, "0.1.0")
    run, _ = AuditLog(storage).begin(entry)
    log_key(storage)
    assert study.monitoring.log_file is not None
    file = LogFile(study.monitoring.log_file)
    outbox = Outbox(storage)
    with suppress(AlertError):
        tell(outbox, Alert(AlertKind.STALLED, run_id, "it has begun"), _is_down)
    with events.heard_by(StructuredLog(study.name, run_id, sinks=(file.write,))):
        run.begin_stage(task)
        for did in dids:
            events.emit(events.ACCOUNT_SETTLED, did=did)
        yield
    tell(outbox, Alert(AlertKind.FAILURE, run_id, "it is over"), lambda text: None)
    run.finish(RunStatus.SUCCESS, None, datetime.now(UTC))
    file.close()


def leave_dead_runs(root: Path) -> None:
    """Leave what runs that were killed can leave: their files, and messages that are too old or torn."""
    storage = StudyStorage(root)
    run, _ = AuditLog(storage).begin(AuditEntry("dead", "study", "ui", datetime.now(UTC), "0" * 16, "0.1.0"))
    left = storage.path(f"{FOLDER}/dead.jsonl").read_bytes()
    run.finish(RunStatus.SUCCESS, None, datetime.now(UTC))
    storage.write_bytes(f"{FOLDER}/killed.jsonl", left)
    storage.write_bytes(f"{FOLDER}/torn.jsonl", left[:5])
    Outbox(storage, lambda: 0.0).post(Alert(AlertKind.FAILURE, "dead", "nobody was told"))
    storage.write_bytes(f"{PENDING}/torn.json", b"{")


def _is_down(text: str) -> None:
    raise AlertError("HTTP 503")
