"""A study's tables of metadata and its store, kept together."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.errors import StorageError
from backfill_dagster.metadata_stores import dynamodb_store
from backfill_dagster.metadata_stores.items import UserItem
from backfill_dagster.metadata_stores.of_study import (
    Written,
    purge,
    store_of,
    write_run_metadata,
    write_user_metadata,
)
from backfill_dagster.monitoring.audit_log import AuditEntry, AuditLog, RunStatus
from backfill_dagster.purge.tombstones import bury
from backfill_dagster.repos import ledger_lots
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.accounts import ACCOUNTS_SCHEMA
from backfill_dagster_tests.metadata_stores.dynamodb_server import REGION, TABLE, DynamoDb
from backfill_dagster_tests.purge.stored_bytes import files_with

ALICE, BOB, CAROL = (f"did:plc:{letter * 24}" for letter in "abc")
FETCHED = datetime(2024, 12, 1, 12, 30, 5, 999, tzinfo=UTC)


def study_of(folder: Path, **store: object) -> Study:
    body = {
        "name": "study",
        "source": {"type": "inline", "dids": [ALICE]},
        "storage": {"path": folder / "data"},
        "metadata_store": store,
    }
    return Study.model_validate(body)


def write_accounts(study: Study, *dids: str, posts: int = 3) -> None:
    rows = [
        {
            "did": did,
            "handle": None if did == BOB else "alice.example.com",
            "pds": "https://pds.example.com",
            "obtained": None if did == CAROL else "repo",
            "snapshot_fetched_at": FETCHED,
            **dict.fromkeys(("replies", "reposts", "follows", "blocks"), 0),
            "posts": posts,
            "likes": 2,
        }
        for did in dids
    ]
    StudyStorage(study.root).write("accounts.parquet", pl.DataFrame(rows, schema=ACCOUNTS_SCHEMA))


def table(study: Study, name: str = "user_metadata") -> pl.DataFrame:
    return StudyStorage(study.root).read(f"{name}.parquet")


def in_dynamodb(folder: Path, server: DynamoDb) -> Study:
    return study_of(folder, type="dynamodb", table_name=TABLE, region=REGION, endpoint_url=server.url)


@pytest.mark.parametrize("at_once", [1, 1000])
def test_collected_accounts_are_in_the_table_and_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(ledger_lots, "ACCOUNTS_AT_ONCE", at_once)
    study = study_of(tmp_path)
    write_accounts(study, ALICE, BOB, CAROL)
    assert write_user_metadata(study) == Written(2, put=2)
    alice = UserItem(
        did=ALICE,
        bluesky_handle="alice.example.com",
        types="post,like",
        total_records=5,
        total_records_by_type='{"post": 3, "like": 2}',
        pds_service_endpoint="https://pds.example.com",
        timestamp="2024-12-01-12:30:05",
    )
    users = list(store_of(study).users())
    assert users[0] == alice
    assert (users[1].did, users[1].bluesky_handle) == (BOB, "")
    assert [UserItem(*row) for row in table(study).drop("in_store").iter_rows()] == users
    assert table(study)["in_store"].all()
    written = (study.root / "user_metadata.parquet").stat().st_ino
    assert write_user_metadata(study) == Written(2)
    assert (study.root / "user_metadata.parquet").stat().st_ino == written
    write_accounts(study, ALICE, posts=0)
    assert write_user_metadata(study) == Written(1, put=1, removed=1)
    [changed] = store_of(study).users()
    assert (changed.types, changed.total_records_by_type) == ("like", '{"like": 2}')


def test_a_store_that_fails_is_tried_again(
    tmp_path: Path, dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamodb_store, "MAX_ATTEMPTS", 1)
    study = in_dynamodb(tmp_path, dynamodb)
    write_accounts(study, ALICE, BOB)
    dynamodb.troubles.errors = ["ThrottlingException"]
    written = write_user_metadata(study)
    assert written.failure is not None
    assert "takes no more" in written.failure
    assert table(study)["in_store"].to_list() == [False, False]
    assert write_user_metadata(study) == Written(2, put=2)
    write_accounts(study, ALICE)
    dynamodb.troubles.errors = ["ThrottlingException"]
    assert write_user_metadata(study).failure is not None
    assert table(study)["did"].to_list() == [ALICE, BOB]
    assert write_user_metadata(study) == Written(1, removed=1)
    assert [user.did for user in store_of(study).users()] == [ALICE]


def test_a_store_whose_file_is_gone_is_filled_again(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    log = AuditLog(StudyStorage(study.root))
    log.begin(AuditEntry("run", "study", "ui", FETCHED, "c", "0.1"))
    write_accounts(study, ALICE, BOB)
    for _ in range(2):
        assert write_user_metadata(study) == Written(2, put=2)
        assert write_run_metadata(study) == Written(1, put=1)
        (study.root / "metadata.sqlite").unlink()
    write_accounts(study, ALICE)
    assert write_user_metadata(study) == Written(1, put=1, removed=1)
    assert [user.did for user in store_of(study).users()] == [ALICE]


def test_another_store_gets_everything(tmp_path: Path, dynamodb: DynamoDb) -> None:
    first, second = study_of(tmp_path), in_dynamodb(tmp_path, dynamodb)
    write_accounts(first, ALICE, BOB)
    write_user_metadata(first)
    assert write_user_metadata(second) == Written(2, put=2)
    assert list(store_of(first).users()) == list(store_of(second).users())


def test_runs_are_those_of_the_audit_log(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    log = AuditLog(StudyStorage(study.root))
    entries = [AuditEntry(f"run{number}", "study", "ui", FETCHED, "c", "0.1") for number in range(2)]
    entries[0].count("repos", {"accounts_complete": 5, "hosts": 2})
    run, _ = log.begin(entries[0])
    run.finish(RunStatus.FAILED, "no space", FETCHED)
    run, _ = log.begin(entries[1])
    assert write_run_metadata(study) == Written(2, put=2)
    failed, running = store_of(study).runs()
    assert (failed.status_code, running.status_code) == (500, 102)
    assert failed.timestamp == "2024-12-01-12:30:05"
    assert '"accounts_complete": 5' in failed.body
    assert '"reason": "no space"' in failed.body
    assert '"backfill": "study"' in failed.metadata
    run.finish(RunStatus.SUCCESS, None, FETCHED)
    assert write_run_metadata(study) == Written(2, put=1)
    assert [one.status_code for one in store_of(study).runs()] == [500, 200]


@pytest.mark.parametrize("where", ["sqlite", "dynamodb"])
def test_who_has_withdrawn_is_in_neither(tmp_path: Path, where: str, request: pytest.FixtureRequest) -> None:
    study = study_of(tmp_path)
    if where == "dynamodb":
        study = in_dynamodb(tmp_path, request.getfixturevalue("dynamodb"))
    write_accounts(study, ALICE, BOB)
    write_user_metadata(study)
    storage = StudyStorage(study.root)
    storage.remove("accounts.parquet")
    tombstones = bury(storage, [ALICE], [], FETCHED)
    assert purge(study, tombstones) == 2
    assert [user.did for user in store_of(study).users()] == [BOB]
    assert files_with(study.root, "a" * 24) == []
    assert purge(study, tombstones) == 0


def test_a_purge_is_not_done_before_the_store_has_answered(tmp_path: Path, dynamodb: DynamoDb) -> None:
    study = in_dynamodb(tmp_path, dynamodb)
    write_accounts(study, ALICE)
    write_user_metadata(study)
    dynamodb.troubles.errors = ["AccessDeniedException: no"]
    with pytest.raises(StorageError, match="are needed"):
        purge(study, bury(StudyStorage(study.root), [ALICE], [], FETCHED))
    assert [user.did for user in store_of(study).users()] == table(study)["did"].to_list() == [ALICE]
