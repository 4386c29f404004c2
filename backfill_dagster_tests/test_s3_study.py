"""A study whose files are in S3 has the tables of one on a disk, and all that can be done with those can be with it."""

import asyncio
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from backfill_dagster import handing_over, pipeline, purging
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.sources import CollectedSource, SharedSource
from backfill_dagster.config.study import Study
from backfill_dagster.dids.entries import EntrySource, SourceAccess
from backfill_dagster.dids.sources.collected import CollectedEntries
from backfill_dagster.dids.sources.shared import SharedAccounts, SharedRecords
from backfill_dagster.manifest.written import write_manifest
from backfill_dagster.metadata_stores.of_study import write_user_metadata
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sharing.share import share
from backfill_dagster.sharing.shared_folder import SharedIds
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.verify import verify
from backfill_dagster_tests.dids.sources.s3_server import BUCKET, point_to_s3
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=31, accounts=40, hosts=2, records=12)
PERIOD = {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}
# Each file of a table takes several requests, and the server is slow.
TYPES = ["app.bsky.feed.like", "app.bsky.graph.follow"]
STAGES = (
    pipeline.collect_source,
    pipeline.resolve_accounts,
    pipeline.fetch_repos,
    pipeline.convert_records,
    pipeline.build_tables,
)
# When something was asked for is another time in another run.
TIMES = ("fetched_at", "snapshot_fetched_at", "attempted_at", "resolved_at", "state_since")


def study_of(folder: Path, **parts: Any) -> Study:
    return sandbox_study(folder, settings=SETTINGS, **{"time_range": PERIOD, "record_types": TYPES, **parts})


def in_s3(folder: Path, **parts: Any) -> Study:
    return study_of(folder, storage={"type": "s3", "path": f"s3://{BUCKET}/{uuid.uuid4().hex}/lab"}, **parts)


def collect(study: Study) -> None:
    for stage in STAGES:
        stage(study)


def rows_of(study: Study) -> dict[str, pl.DataFrame]:
    """Return all that a user reads, by key."""
    storage = StudyStorage(study.location)
    keys = [*storage.keys("tables"), *storage.keys("undated"), *storage.keys("derived"), "accounts.parquet"]
    return {key: storage.read(key).drop(TIMES, strict=False) for key in keys}


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    network = sandbox(SETTINGS)
    network.edit.reset()
    network.requests.clear()
    yield network
    network.edit.reset()


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = study_of(tmp_path_factory.mktemp("disk"))
    sandbox(SETTINGS).edit.reset()
    collect(study)
    return study


@pytest.fixture(scope="module")
def s3_study(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with pytest.MonkeyPatch.context() as environment:
        point_to_s3(environment, s3_url)
        study = in_s3(tmp_path_factory.mktemp("s3"))
        sandbox(SETTINGS).edit.reset()
        collect(study)
        yield study


def same(left: dict[str, pl.DataFrame], right: dict[str, pl.DataFrame]) -> bool:
    return left.keys() == right.keys() and all(left[key].equals(right[key]) for key in left)


def test_its_tables_are_those_of_a_disk(on_disk: Study, s3_study: Study) -> None:
    rows = rows_of(on_disk)
    assert len(rows) > 5
    assert same(rows, rows_of(s3_study))


def test_a_second_run_fetches_nothing_and_writes_nothing(
    s3_study: Study, network: SandboxNetwork, s3: Any
) -> None:
    def versions() -> dict[str, str]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=s3_study.location.prefix)  # type: ignore[union-attr]
        return {
            item["Key"]: f"{item['ETag']} {item['LastModified']}"
            for page in pages
            for item in page["Contents"]
        }

    before = versions()
    collect(s3_study)
    assert not [request for request in network.requests.all() if "getRepo" in request.path]
    kept = re.compile(r"tables/|undated/|repos/|records/|built/")
    assert {key: told for key, told in before.items() if kept.search(key)} == {
        key: told for key, told in versions().items() if kept.search(key)
    }


def test_requests_to_s3_are_counted_by_files_and_not_by_accounts(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twice the accounts in as many packs, no stage asks for more."""
    from botocore.client import BaseClient

    asked: Counter[str] = Counter()
    ask = BaseClient._make_api_call

    def counted(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        if ".lease" not in str(parameters.get("Key")):
            asked[operation] += 1
        return ask(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", counted)
    numbers = []
    for accounts in (20, 40):
        asked.clear()
        dids = sandbox(SETTINGS).dids[:accounts]
        study = in_s3(
            tmp_path, source={"type": "inline", "dids": list(dids)}, record_types=["app.bsky.feed.like"]
        )
        for stage in STAGES[:3]:
            stage(study)
        numbers.append(asked.total())
    assert numbers[1] <= numbers[0] + 6, numbers


def test_what_changes_on_the_network_reaches_its_tables(
    tmp_path: Path, network: SandboxNetwork, s3: Any
) -> None:
    studies = [study_of(tmp_path, network={"directory_max_age_hours": 0})]
    studies.append(in_s3(tmp_path, network={"directory_max_age_hours": 0}))
    for study in studies:
        collect(study)
    before = rows_of(studies[0])
    did = next(
        row["did"]
        for row in before["accounts.parquet"].iter_rows(named=True)
        if row["state"] == "complete" and row["likes"] and row["did"].startswith("did:plc:")
    )
    uri = next(
        uri
        for key, rows in before.items()
        if key.startswith("tables/likes/")
        for uri in rows.filter(did=did)["uri"]
    )
    network.edit.delete(did, *uri.removeprefix(f"at://{did}/").split("/"))
    for study in studies:
        pipeline.resolve_accounts(study)
        pipeline.fetch_repos(study, mode=FetchMode.REFRESH)
        pipeline.convert_records(study)
        pipeline.build_tables(study)
    on_disk, in_bucket = map(rows_of, studies)
    assert same(on_disk, in_bucket)
    assert not same(before, in_bucket)


def test_what_it_shares_is_what_a_disk_shares_and_is_read_from_there(
    s3_study: Study, on_disk: Study, tmp_path: Path
) -> None:
    there, here = share(s3_study), share(on_disk)
    assert (there.rows, there.accounts) == (here.rows, here.accounts)
    in_bucket, on_this_disk = (StudyStorage(study.location) for study in (s3_study, on_disk))
    source = SharedSource.model_validate({"type": "shared", "path": in_bucket.where("shared/ids")})
    dids = asyncio.run(entries_of(SharedAccounts(source, "source"), tmp_path))
    assert dids == on_this_disk.read("shared/ids/accounts.parquet")["did"].to_list()
    likes = asyncio.run(entries_of(SharedRecords(source, "source", TYPES[0]), tmp_path))
    assert likes == on_this_disk.read("shared/ids/likes.parquet")["uri"].to_list()
    assert len(likes) > 20


def test_a_purge_leaves_nothing_of_an_account(s3_study: Study, tmp_path: Path, s3: Any) -> None:
    storage = StudyStorage(s3_study.location)
    did = storage.read("accounts.parquet").filter(state="complete")["did"][0]
    share(s3_study)
    report = purging.purge(s3_study, dids=[did])
    assert report.accounts == 1
    assert report.removed["blocks"] > 0
    for file in [*storage.listed("repos"), *storage.listed("tables")]:
        rows = storage.read(file.key)
        assert did not in rows["did"].to_list()
        assert did.encode() not in b"".join(rows["block"].to_list() if "block" in rows.columns else [])
    shared = SharedIds.open(s3_study.location / "shared/ids")
    shared.check(["accounts", *shared.tables])
    assert did not in storage.read("shared/ids/accounts.parquet")["did"].to_list()


def test_the_one_command_does_all_of_it(tmp_path: Path, s3: Any, on_disk: Study) -> None:
    study = in_s3(tmp_path)
    home = tmp_path / "instance"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        assert execute(tmp_path, "study", instance)
        [event] = instance.fetch_materializations(dg.AssetKey(["study", "accounts"]), limit=1).records
        metadata = event.asset_materialization.metadata if event.asset_materialization else {}
        assert metadata["path"].value == f"{study.location}/accounts.parquet"
    assert same(rows_of(on_disk), rows_of(study))


def test_it_is_proven_from_what_is_stored_and_a_flipped_byte_is_found(
    tmp_path: Path, network: SandboxNetwork, s3: Any
) -> None:
    study = in_s3(
        tmp_path, source={"type": "inline", "dids": sandbox(SETTINGS).dids[:6]}, record_types=TYPES[:1]
    )
    collect(study)
    write_manifest(study)
    verification = verify(study)
    assert verification.holds
    assert verification.counts["proven"] > 0
    storage = StudyStorage(study.location)
    key = next(key for key in storage.keys("repos") if ".blocks-" in key)
    content = bytearray(storage.read_bytes(key))
    content[len(content) // 2] ^= 1
    storage.write_bytes(key, bytes(content))
    broken = verify(study)
    assert not broken.holds
    assert key in broken.problems["file"].to_list()


def test_its_records_are_handed_over_once_and_its_accounts_are_known_to_others(
    tmp_path: Path, s3_study: Study
) -> None:
    parts = s3_study.model_dump(mode="json", exclude_unset=True)
    consumer = {"type": "parquet", "tables": ["likes"], "path": str(tmp_path / "outbox")}
    study = Study.model_validate({**parts, "integrations": {"consumers": {"lab": consumer}}})
    likes = sum(
        rows.height for key, rows in rows_of(study).items() if key.partition("/")[2].startswith("likes")
    )
    assert handing_over.hand_over(study, "lab").exported == {"likes": likes}
    assert handing_over.hand_over(study, "lab").exported == {"likes": 0}
    given = pl.read_parquet(tmp_path / "outbox/likes/*.parquet")
    assert given["uri"].n_unique() == given.height == likes

    write_user_metadata(study)
    collected = CollectedSource.model_validate({"type": "collected", "backfill": study.name})
    entries = CollectedEntries(collected, "source", study.storage.location)
    assert entries.stamp() is not None
    complete = StudyStorage(study.location).read("accounts.parquet").filter(state="complete")
    assert asyncio.run(entries_of(entries, tmp_path)) == sorted(complete["did"])


async def entries_of(entries: EntrySource, scratch: Path) -> list[str]:
    return [did async for batch in entries.entries(SourceAccess(scratch)) for did in batch["entry"]]
