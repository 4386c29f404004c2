"""The directory in bulk: row by row what looking each account up comes to."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline, purging, study_files
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.directory.export_copy import Reached, operation_rows
from backfill_dagster.directory.export_rows import directory_rows
from backfill_dagster.directory.plc_operations import read_operations
from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA
from backfill_dagster.sandbox.faults import ServerError
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import PLC_HOST, Role
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.directory.exporting import entry
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.studies import resolved_directory, sandbox, sandbox_study

# A population of its own: these tests edit accounts.
SETTINGS = SandboxSettings(seed=43, accounts=120, hosts=3, records=5)
EXPORT = "/export"
QUICK = {"max_retries": 1, "requests_per_second": 500, "workers": 1}


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    found = sandbox(SETTINGS)
    found.edit.reset()
    found.faults.clear()
    found.requests.clear()
    yield found
    found.edit.reset()
    found.faults.clear()


def study(folder: Path, use: str = "always", name: str = "study", **export: Any) -> Study:
    made = sandbox_study(
        folder, name, SETTINGS, processing=QUICK, network={"plc_export": {"use": use, **export}}
    )
    pipeline.collect_source(made)
    return made


def normal(network: SandboxNetwork, number: int) -> str:
    return [found.did for found in network.truth.accounts() if found.role is Role.NORMAL][number]


def change(network: SandboxNetwork) -> None:
    """Have accounts move, rename themselves, change keys and end; some of them more than once."""
    edit, hosts = network.edit, network.hosts
    for number in range(4):
        did = normal(network, number)
        pds = network.truth.account(did).pds
        edit.migrate(did, next(host for host in hosts if f"http://{host}" != pds))
    edit.change_handle(normal(network, 0), "moved.test")
    edit.rotate_key(normal(network, 1))
    edit.change_handle(normal(network, 5), "other.test")
    edit.tombstone(normal(network, 2))
    edit.tombstone(normal(network, 6))


def test_it_is_row_by_row_what_lookups_come_to(network: SandboxNetwork, tmp_path: Path) -> None:
    change(network)
    looked_up = resolved_directory(study(tmp_path, "never", "one_by_one"))
    network.requests.clear()

    bulk = resolved_directory(study(tmp_path))

    assert set(looked_up["resolved_by"]) == {"lookup"}
    told = bulk.filter(pl.col("resolved_by") == "plc_export")
    roles = {account.did: account.role for account in network.truth.accounts()}
    # Only who is not in the directory at all, and did:web, was asked for.
    alone = bulk.filter(pl.col("resolved_by") == "lookup")
    assert {roles[did] for did in alone["did"]} == {Role.UNKNOWN_TO_PLC, Role.DID_WEB, Role.DID_WEB_GONE}
    assert network.requests.count(host=PLC_HOST) == alone["did"].str.starts_with("did:plc").sum() + 2
    # What a directory says that answers with another's document, its log does not tell.
    others = [did for did, role in roles.items() if role is Role.DOCUMENT_OF_ANOTHER]
    plain = ["did", "handle", "pds", "pds_host", "key_type", "key_multibase", "state"]
    both = [
        frame.filter(~pl.col("did").is_in(others)).select(
            *plain, reason=pl.when(pl.col("state") != "tombstoned").then("reason")
        )
        for frame in (bulk, looked_up)
    ]
    assert both[0].equals(both[1])
    assert both[0].columns[-1] == "reason"
    assert set(told["state"]) == {"resolved", "tombstoned", "no_pds"}
    assert told["resolved_at"].n_unique() == 1
    age = datetime.now(UTC) - told["resolved_at"][0]
    assert timedelta(seconds=60) <= age < timedelta(seconds=180)


@pytest.mark.parametrize(
    ("claims", "state", "said"),
    [
        ({"services": {"atproto_pds": {"endpoint": "ftp://x"}}}, "bad_document", "endpoint that is none"),
        ({"services": {}}, "no_pds", "names no personal data server"),
        ({"verificationMethods": {}}, "resolved", "no signing key"),
        ({}, "resolved", None),
    ],
)
def test_odd_documents(claims: dict[str, Any], state: str, said: str | None) -> None:
    made = entry(1, **claims)
    for service in made["operation"]["services"].values():
        service.setdefault("type", "AtprotoPersonalDataServer")
    operations = read_operations(json.dumps(made).encode())

    rows = directory_rows(operation_rows(operations), datetime.now(UTC))

    assert rows.schema == DIRECTORY_SCHEMA
    [row] = rows.iter_rows(named=True)
    assert row["state"] == state
    assert row["reason"] is None if said is None else said in row["reason"]
    assert (row["pds"] is None) == (row["handle"] is None) == (state != "resolved")


def test_an_account_created_since_is_looked_up(network: SandboxNetwork, tmp_path: Path) -> None:
    export = tmp_path / "data" / ".plc_export"
    pipeline.resolve_accounts(study(tmp_path))
    [last] = export.rglob("operations/*.parquet")
    rows = pl.read_parquet(last)
    kept = rows.filter(pl.col("did") != normal(network, 3))
    kept.write_parquet(last, metadata=pl.read_parquet_metadata(last))

    other = resolved_directory(study(tmp_path, name="other"))

    [row] = other.filter(pl.col("did") == normal(network, 3)).iter_rows(named=True)
    assert (row["resolved_by"], row["state"]) == ("lookup", "resolved")


def test_studies_of_one_storage_share_the_copy_until_it_is_too_old(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    pipeline.resolve_accounts(study(tmp_path))
    pages = network.requests.count(path=EXPORT)
    change(network)

    second = resolved_directory(study(tmp_path, name="second"))
    assert network.requests.count(path=EXPORT) == pages == 2
    assert "moved.test" not in second["handle"].to_list()

    age_copy(tmp_path, timedelta(hours=5))
    third = resolved_directory(study(tmp_path, name="third", max_age_hours=4))
    assert network.requests.count(path=EXPORT) > pages
    assert "moved.test" in third["handle"].to_list()
    assert third.filter(pl.col("state") == "tombstoned").height == 3


def age_copy(folder: Path, by: timedelta) -> None:
    """Have the copy say that it was brought up to date longer ago."""
    for file in folder.rglob("operations/*.parquet"):
        metadata = pl.read_parquet_metadata(file)
        reached = Reached.from_json(metadata["reached"])
        older = Reached(reached.at, reached.cids, reached.until - by)
        pl.read_parquet(file).write_parquet(file, metadata={"reached": older.to_json()})


@pytest.mark.parametrize(
    ("use", "at_least", "used"), [("never", 1, False), ("auto", 10, True), ("auto", 1000, False)]
)
def test_when_it_is_used(
    network: SandboxNetwork, tmp_path: Path, use: str, at_least: int, *, used: bool
) -> None:
    directory = resolved_directory(study(tmp_path, use, at_least=at_least))

    assert (network.requests.count(path=EXPORT) > 0) == used
    assert ("plc_export" in directory["resolved_by"].to_list()) == used


def test_without_the_export_accounts_are_looked_up_one_by_one(
    network: SandboxNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network.faults.set_host(PLC_HOST, ServerError(500), paths=[EXPORT])

    with caplog.at_level(logging.WARNING):
        directory = resolved_directory(study(tmp_path))

    assert set(directory["resolved_by"]) == {"lookup"}
    assert (directory["state"] == DirectoryState.RESOLVED.value).sum() > 80
    assert "looked up one by one" in caplog.text


def test_a_directory_of_an_older_version_is_gone_on_with(network: SandboxNetwork, tmp_path: Path) -> None:
    made = study(tmp_path, "never")
    storage = StudyStorage(made.root)
    pipeline.resolve_accounts(made)
    older = storage.read(study_files.DIRECTORY_KEY).drop("resolved_by")
    storage.write(study_files.DIRECTORY_KEY, older)
    key = f"{study_files.UNFINISHED_DIRECTORY_FOLDER}/part-00000.parquet"
    storage.write(key, older.head(5).drop("state_since"))
    network.requests.clear()

    directory = resolved_directory(made)

    assert network.requests.count(host=PLC_HOST) == 0
    assert directory.drop("resolved_by").equals(older)
    assert directory["resolved_by"].null_count() == directory.height


def test_a_purge_leaves_nothing_of_an_account_in_the_study_and_the_public_copy_as_it_is(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    made = study(tmp_path)
    directory = resolved_directory(made)
    did, handle = directory.filter(pl.col("resolved_by") == "plc_export").row(3)[:2]
    copy = tmp_path / "data" / ".plc_export"
    before = files_with(copy, did)
    assert files_with(made.root, did)
    assert before

    purging.purge(made, dids=[did], rebuild=lambda _: None)

    assert files_with(made.root, did) == files_with(made.root, handle) == []
    assert files_with(copy, did) == before
    pipeline.collect_source(made)
    assert did not in resolved_directory(made)["did"]
    assert files_with(made.root, did) == files_with(made.root, handle) == []
