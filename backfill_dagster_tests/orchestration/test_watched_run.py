"""What goes beside a real run: its lines in the structured log, its row of the audit log, its alerts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.monitoring.account_names import AccountHashes, without_accounts
from backfill_dagster.monitoring.audit_log import AUDIT_LOG_KEY, AUDIT_SCHEMA, AuditLog
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.monitoring.events import EVENTS
from backfill_dagster.monitoring.log_key import log_key
from backfill_dagster.monitoring.structured_log import COMMON_FIELDS
from backfill_dagster.orchestration import watched_run
from backfill_dagster.orchestration.audit import config_hash
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.monitoring.webhook_server import Chat, running_chat
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox, sandbox_study

SMALL = SandboxSettings(seed=3, accounts=30, hosts=1, records=5)
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop"}
VARIABLE = "BACKFILL_ALERT_WEBHOOK"


class Ran:
    """A study after a run of its job and what followed: what was logged, told and put on the audit log."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, chat: Chat) -> None:
        self.folder = folder
        self.instance = instance
        self.chat = chat
        self.log_file = folder / "logs" / "study.jsonl"
        self.study = self.write()
        self.succeeded = self.run("study", {"ops": {"study__fetch_hosts": {"config": {"max_retries": 1}}}})

    def write(self, **monitoring: Any) -> Study:
        return sandbox_study(
            self.folder,
            settings=SMALL,
            record_types=["app.bsky.feed.post"],
            time_range=PERIOD,
            monitoring={
                "log_file": str(self.log_file),
                "hash_dids": True,
                "alert_on_failure": True,
                **monitoring,
            },
        )

    def run(self, job: str, config: dict[str, Any] | None = None) -> bool:
        return execute(self.folder, job, self.instance, config)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_bytes().splitlines()]

    @property
    def audit(self) -> list[dict[str, Any]]:
        return AuditLog(StudyStorage(self.study.root)).read().to_dicts()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "instance").mkdir()
    settings: dict[str, Any] = {
        "telemetry": {"enabled": False},
        "python_logs": {"managed_python_loggers": ["backfill_dagster"], "python_log_level": "INFO"},
    }
    with (
        dg.DagsterInstance.local_temp(str(folder / "instance"), overrides=settings) as instance,
        running_chat() as chat,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(VARIABLE, chat.url)
        yield Ran(folder, instance, chat)


def test_a_whole_run_is_one_row_with_what_it_did(ran: Ran) -> None:
    assert ran.succeeded
    [row] = [row for row in ran.audit if row["job"] == "study"]
    complete = [account for account in sandbox(SMALL).truth.accounts() if account.is_complete]
    assert row["status"] == "success"
    assert row["stages"][:4] == ["source_dids", "directory", "repos", "records"]
    assert {"posts", "replies", "undated", "accounts", "report"} <= set(row["stages"])
    assert row["started_by"].startswith("command line ")
    assert row["config_hash"] == config_hash(ran.study)
    assert row["code_version"] == code_version()
    assert json.loads(row["settings"]) == {"fetch_hosts": {"max_retries": 1}}
    assert row["accounts_complete"] == len(complete)
    assert row["accounts_asked"] >= len(complete)
    assert row["started_at"] < row["ended_at"]
    fates = row["records_kept"] + row["records_filtered"] + row["records_rejected"]
    assert row["records_fetched"] == fates > 0
    rows = json.loads(row["rows_by_table"])
    for table in ("posts", "replies"):
        assert rows[table] == pl.read_parquet(ran.study.root / f"tables/{table}/*/*.parquet").height
    assert json.loads(row["counts"])["source_dids"]["kept"] == 30


def test_the_asset_shows_the_latest_runs(ran: Ran) -> None:
    event = ran.instance.get_latest_materialization_event(dg.AssetKey(["study", "audit_log"]))
    assert event is not None
    assert event.asset_materialization is not None
    table = str(event.asset_materialization.metadata["latest_runs"].value)
    assert "| success |" in table
    assert "command line" in table
    assert dict(pl.read_parquet_schema(ran.study.root / AUDIT_LOG_KEY)) == dict(AUDIT_SCHEMA)


def test_the_log_tells_of_every_account_stage_pack_and_host_once(ran: Ran) -> None:
    first = ran.lines[0]["run_id"]
    lines = [line for line in ran.lines if line["run_id"] == first]
    known = {event.name for event in EVENTS}
    for line in lines:
        assert tuple(line)[: len(COMMON_FIELDS)] == COMMON_FIELDS
        assert line["event"] in known
        assert line["backfill"] == "study"
    [row] = [row for row in ran.audit if row["run_id"] == first]
    settled = [line for line in lines if line["event"] in ("account_settled", "account_failed")]
    assert len(settled) == row["accounts_asked"] == len({line["did"] for line in settled})
    assert all(line["pack"] and line["host"] for line in settled)
    for event, stages in (("stage_begun", row["stages"]), ("stage_done", row["stages"])):
        assert [line["stage"] for line in lines if line["event"] == event] == stages
    assert [line["accounts"] for line in lines if line["event"] == "host_begun"] == [len(settled)]
    [done] = [line for line in lines if line["event"] == "host_done"]
    assert sum(done["outcomes"].values()) == len(settled)
    packs = [line for line in lines if line["event"] == "pack_committed"]
    assert sum(line["accounts"] for line in packs) == len(settled)
    assert {line["pack"] for line in packs} == {line["pack"] for line in settled}
    said = [line["message"] for line in lines if line["event"] == "message"]
    assert len([text for text in said if text.startswith("The fetch needs")]) == 1
    assert len([text for text in said if "Study study:" in text]) == 1
    assert [lines[0]["event"], lines[-1]["event"]] == ["run_begun", "run_done"]


def test_accounts_are_named_by_hashes_and_in_dagster_s_events_not_at_all(ran: Ran) -> None:
    hashes = AccountHashes(log_key(StudyStorage(ran.study.root)))
    named = {line["did"] for line in ran.lines if line["did"]}
    complete = {account.did for account in sandbox(SMALL).truth.accounts() if account.is_complete}
    assert {hashes.did(did) for did in complete} <= named <= {hashes.did(did) for did in sandbox(SMALL).dids}
    assert without_accounts(ran.log_file.read_text()) == ran.log_file.read_text()
    for run in ran.instance.get_runs():
        for entry in ran.instance.all_logs(run.run_id):
            text = f"{entry.user_message} {entry.to_json()}"  # type: ignore[no-untyped-call]
            assert without_accounts(text) == text
            assert "account:" not in text


def test_a_failed_run_is_on_both_logs_and_told_once(ran: Ran) -> None:
    assert not ran.run("study_purge")
    [row] = [row for row in ran.audit if row["job"] == "study_purge"]
    assert row["status"] == "failed"
    assert "nothing to purge is named" in row["reason"]
    assert row["stages"] == ["purge"]
    lines = [line for line in ran.lines if line["run_id"] == row["run_id"]]
    events = [line["event"] for line in lines]
    assert [events.count(name) for name in ("stage_failed", "step_failed", "alert", "run_done")] == [
        1,
        1,
        1,
        1,
    ]
    [text] = ran.chat.texts
    assert "study_purge failed" in text
    assert "nothing to purge is named" in text


def test_a_run_that_is_refused_is_on_the_log_as_well(ran: Ran) -> None:
    lock = StudyLockResource()
    with lock.yield_for_execution(dg.build_init_resource_context()):
        lock.take(ran.study, "another")
        assert not ran.run("study_stage_accounts")
    row = ran.audit[-1]
    assert (row["job"], row["status"]) == ("study_stage_accounts", "failed")
    assert "is being run by" in row["reason"]


def test_a_single_stage_is_a_row_and_the_level_is_honoured(ran: Ran) -> None:
    ran.write(log_level="WARNING")
    before = len(ran.lines)
    assert ran.run("study_stage_accounts", {"ops": {"study__undated": {"config": {"again": True}}}})
    assert len(ran.lines) == before
    row = ran.audit[-1]
    assert row["status"] == "success"
    assert {"undated", "accounts", "report"} <= set(row["stages"])
    assert not {"source_dids", "repos", "records"} & set(row["stages"])
    assert json.loads(row["settings"]) == {"undated": {"again": True}}
    assert row["accounts_asked"] is None


def test_a_log_file_that_cannot_be_written_is_told_before_any_work(ran: Ran) -> None:
    ran.write(log_file=str(ran.folder))
    assert not ran.run("study_stage_accounts")
    row = ran.audit[-1]
    assert row["status"] == "failed"
    assert "monitoring.log_file" in row["reason"]
    assert row["stages"] == []


def test_a_history_that_does_not_answer_fails_no_run_and_leaves_nothing_behind(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran.write()

    def locked(*_: object) -> None:
        raise OSError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(watched_run, "outcome_of", locked)
        assert ran.run("study_stage_accounts")
    assert ran.audit[-1]["status"] == "failed"
    assert "database is locked" in ran.audit[-1]["reason"]
    assert watched_run._watched == {}
