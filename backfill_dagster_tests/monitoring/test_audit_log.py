import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.audit_log import (
    AUDIT_COLUMNS,
    AUDIT_LOG_KEY,
    AUDIT_SCHEMA,
    FOLDER,
    GONE,
    AuditEntry,
    AuditLog,
    RunStatus,
)
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.conftest import ROOT

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


def entry(run_id: str = "run-1", minute: int = 0) -> AuditEntry:
    return AuditEntry(
        run_id=run_id,
        job="study",
        started_by="ui",
        started_at=BEGIN + timedelta(minutes=minute),
        config_hash="c" * 16,
        code_version="0.1.0",
        settings={"fetch_hosts": {"only_dids": 2}},
    )


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(StudyStorage(tmp_path / "study"))


def test_a_run_is_on_the_log_from_its_begin_and_ends_in_the_same_row(log: AuditLog) -> None:
    run, died = log.begin(entry())
    assert died == []
    [row] = log.read().to_dicts()
    assert (row["status"], row["ended_at"], row["stages"]) == ("running", None, [])
    run.begin_stage("repos")
    run.begin_stage("records")
    run.begin_stage("repos")
    run.entry.count("repos", {"accounts_asked": 10, "accounts_failed": 1, "requests": 12})
    run.entry.count("repos", {"accounts_asked": 5, "requests": 5})
    run.entry.rows["posts"] = 7
    run.finish(RunStatus.FAILED, f"no {DID}", BEGIN + timedelta(minutes=5))
    [row] = log.read().to_dicts()
    assert row == {
        "run_id": "run-1",
        "job": "study",
        "stages": ["repos", "records"],
        "started_by": "ui",
        "started_at": BEGIN,
        "ended_at": BEGIN + timedelta(minutes=5),
        "status": "failed",
        "reason": "no (an account)",
        "config_hash": "c" * 16,
        "code_version": "0.1.0",
        "settings": '{"fetch_hosts": {"only_dids": 2}}',
        "accounts_asked": 15,
        "accounts_complete": None,
        "accounts_failed": 1,
        "records_fetched": None,
        "records_kept": None,
        "records_filtered": None,
        "records_rejected": None,
        "rows_by_table": '{"posts": 7}',
        "counts": '{"repos": {"requests": 17}}',
    }


def test_runs_are_in_order_and_leave_no_files_of_their_own(log: AuditLog, tmp_path: Path) -> None:
    second, _ = log.begin(entry("run-2", 2))
    first, died = log.begin(entry("run-1", 1))
    assert died == [], "both are alive"
    first.finish(RunStatus.SUCCESS, None, BEGIN)
    second.finish(RunStatus.SUCCESS, None, BEGIN)
    rows = log.read()
    assert rows["run_id"].to_list() == ["run-1", "run-2"]
    assert rows.schema == AUDIT_SCHEMA
    assert list((tmp_path / "study" / FOLDER).iterdir()) == []


def test_the_columns_that_are_never_null_are_not() -> None:
    row = entry().row()
    assert list(row) == list(AUDIT_SCHEMA)
    assert all(row[column.name] is not None for column in AUDIT_COLUMNS if column.required)


SCRIPT = """
import os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from backfill_dagster.monitoring.audit_log import AuditEntry, AuditLog
from backfill_dagster.storage import StudyStorage
entry = AuditEntry("killed", "study", "ui", datetime(2026, 1, 1, tzinfo=UTC), "c", "v")
run, _ = AuditLog(StudyStorage(Path(sys.argv[1]))).begin(entry)
run.begin_stage("repos")
print("begun", flush=True)
time.sleep(60)
"""


def test_a_run_that_is_killed_is_marked_by_the_next_one(log: AuditLog, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "study")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    beside, died = log.begin(entry("beside", 1))
    assert died == [], "it lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    _, died = log.begin(entry("next", 2))
    assert [one.run_id for one in died] == ["killed"]
    rows = {row["run_id"]: row for row in log.read().to_dicts()}
    assert rows["killed"]["status"] == "died"
    assert rows["killed"]["reason"] == GONE
    assert rows["killed"]["stages"] == ["repos"]
    assert rows["killed"]["ended_at"] is None
    assert (rows["beside"]["status"], rows["next"]["status"]) == ("running", "running")
    beside.finish(RunStatus.SUCCESS, None, BEGIN)
    _, died = log.begin(entry("last", 3))
    assert died == [], "told once"


def leave(log: AuditLog, tmp_path: Path, run_id: str, content: bytes) -> Path:
    path = tmp_path / "study" / FOLDER / f"{run_id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_run_that_was_killed_while_it_wrote_is_no_obstacle(log: AuditLog, tmp_path: Path) -> None:
    empty, torn = leave(log, tmp_path, "empty", b""), leave(log, tmp_path, "torn", b'{"job": "stu')
    run, died = log.begin(entry())
    assert died == []
    assert not empty.exists()
    assert not torn.exists()
    run.finish(RunStatus.SUCCESS, None, BEGIN)


def test_a_run_that_was_killed_after_its_final_row_has_not_died(log: AuditLog, tmp_path: Path) -> None:
    run, _ = log.begin(entry())
    path = tmp_path / "study" / FOLDER / "run-1.jsonl"
    content = path.read_bytes()
    run.finish(RunStatus.SUCCESS, None, BEGIN)
    leave(log, tmp_path, "run-1", content)
    _, died = log.begin(entry("run-2"))
    assert died == []
    assert log.read()["status"].to_list() == ["success", "running"]


def test_a_run_whose_end_could_not_be_put_on_the_log_has_not_died(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = log.begin(entry())
    run.entry.count("repos", {"accounts_asked": 7})
    with monkeypatch.context() as patch:
        patch.setattr("backfill_dagster.stores.local.HEADROOM_BYTES", 2**62)
        with pytest.raises(StorageError):
            run.finish(RunStatus.FAILED, "the disk is full", BEGIN + timedelta(hours=1))
    _, died = log.begin(entry("run-2", 1))
    assert died == []
    row = log.read().row(0, named=True)
    assert (row["status"], row["reason"], row["accounts_asked"]) == ("failed", "the disk is full", 7)
    assert row["ended_at"] == BEGIN + timedelta(hours=1)


def test_a_log_of_an_older_version_is_read(log: AuditLog, tmp_path: Path) -> None:
    StudyStorage(tmp_path / "study").write(
        AUDIT_LOG_KEY, pl.DataFrame([entry("old").row()], schema=AUDIT_SCHEMA).drop("counts", "settings")
    )
    run, _ = log.begin(entry("new", 1))
    run.finish(RunStatus.SUCCESS, None, BEGIN)
    assert log.read()["run_id"].to_list() == ["old", "new"]
    assert log.read()["counts"].to_list() == [None, None]


def test_the_same_runs_make_the_same_file(tmp_path: Path) -> None:
    contents = []
    for folder in ("one", "two"):
        storage = StudyStorage(tmp_path / folder)
        for minute in range(3):
            run, _ = AuditLog(storage).begin(entry(f"run-{minute}", minute))
            run.finish(RunStatus.SUCCESS, None, BEGIN + timedelta(hours=1))
        contents.append(storage.sha256(AUDIT_LOG_KEY))
    assert contents[0] == contents[1]


def test_a_run_costs_little(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    storage.write(
        AUDIT_LOG_KEY,
        pl.DataFrame([entry(f"{number:08}", number).row() for number in range(5_000)], schema=AUDIT_SCHEMA),
    )
    begun = time.process_time()
    for number in range(5):
        run, _ = AuditLog(storage).begin(entry(f"new-{number}"))
        run.finish(RunStatus.SUCCESS, None, BEGIN)
    assert (time.process_time() - begun) / 5 < 0.5
