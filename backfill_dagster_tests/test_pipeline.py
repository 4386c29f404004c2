"""The stages together, against a network whose truth is known."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow.parquet as pq
import pytest

from backfill_dagster import accounting, fingerprints, pipeline, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.directory import resolve
from backfill_dagster.errors import StorageError
from backfill_dagster.network.leases import LocalHostLeases
from backfill_dagster.network.limits import HostGate
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.faults import HostDown
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.truth import RecordTruth, first_for_subject
from backfill_dagster.storage import StoredFile, StudyStorage
from backfill_dagster.tables import build, kept, parts
from backfill_dagster.tables.accounts import unreconciled
from backfill_dagster.workers import worker_pool
from backfill_dagster_tests.studies import resolved_directory, sandbox, sandbox_study, table_hashes

GET_REPO = "com.atproto.sync.getRepo"


def run_all(study: Study) -> pl.DataFrame:
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    return pipeline.build_tables(study)


@pytest.fixture(scope="module")
def network() -> Iterator[SandboxNetwork]:
    network = sandbox()
    network.faults.clear()
    yield network
    network.faults.clear()


@pytest.fixture(scope="module")
def collected(network: SandboxNetwork, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = sandbox_study(tmp_path_factory.mktemp("collected"))
    run_all(study)
    return study


def read_table(study: Study, table: str) -> pl.DataFrame:
    months = pl.read_parquet(study.root / f"tables/{table}/month=*/*.parquet", hive_partitioning=False)
    return pl.concat([months, pl.read_parquet(study.root / f"undated/{table}/*.parquet")])


def true_rows(network: SandboxNetwork, table: str) -> list[RecordTruth]:
    return [
        record
        for did in network.dids
        for record in network.truth.records(did)
        if record.table == table and record.defect is None
    ]


TABLES = ["posts", "replies", "likes", "reposts", "follows", "blocks"]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_equals_the_truth_row_by_row(
    collected: Study, network: SandboxNetwork, table: str
) -> None:
    rows = {row["uri"]: row for row in read_table(collected, table).iter_rows(named=True)}
    truth = {record.uri: record for record in true_rows(network, table)}
    assert truth
    assert rows.keys() == truth.keys()
    for uri, record in truth.items():
        row = rows[uri]
        assert row["cid"] == record.cid
        assert row["created_at"] == record.created_at, uri
        assert orjson.loads(row["record"]) == record.value
        raw = record.created_at_raw
        assert row["created_at_raw"] == (raw if isinstance(raw, str) else None)
        assert row["obtained"] == "repo"
        expected = expected_fields(record)
        assert {name: row[name] for name in expected} == expected, uri


@pytest.mark.parametrize("table", ["likes", "reposts", "follows", "blocks"])
def test_the_first_of_each_subject_is_marked(collected: Study, network: SandboxNetwork, table: str) -> None:
    rows = read_table(collected, table)
    firsts = first_for_subject(true_rows(network, table), datetime.now(UTC))
    assert dict(rows.select("uri", "first_for_subject").drop_nulls().iter_rows()) == firsts
    assert (False in firsts.values()) == (table in ("likes", "follows"))


def test_no_uri_stands_twice(collected: Study) -> None:
    for table in TABLES:
        assert not read_table(collected, table)["uri"].is_duplicated().any()


def test_rows_stand_in_the_month_of_their_true_creation(collected: Study) -> None:
    for table in TABLES:
        for path in (collected.root / "tables" / table).glob("month=*/*.parquet"):
            months = (
                pl.read_parquet(path, hive_partitioning=False)["created_at"].dt.strftime("%Y-%m").unique()
            )
            assert set(months) <= {path.parent.name.removeprefix("month=")}


def test_every_account_ends_in_its_true_state(collected: Study, network: SandboxNetwork) -> None:
    accounts = pl.read_parquet(collected.root / "accounts.parquet")
    found = {row["did"]: row for row in accounts.iter_rows(named=True)}
    assert found.keys() == set(network.dids)
    for truth in network.truth.accounts():
        row = found[truth.did]
        if truth.outcome is not None:
            assert row["state"] == truth.outcome, truth.role
        elif truth.directory_state == "tombstoned":
            assert row["state"] == "tombstoned"
        else:
            assert (row["state"], row["reason"]) == ("unresolved", truth.directory_state)
        if truth.is_complete:
            assert (row["repo_rev"], row["signed_by"]) == (truth.repo_rev, truth.signed_by)
            assert (row["handle"], row["pds"]) == (truth.handle, truth.pds)


def test_fetched_is_kept_and_filtered_and_rejected(collected: Study, network: SandboxNetwork) -> None:
    accounts = pl.read_parquet(collected.root / "accounts.parquet")
    assert unreconciled(accounts).is_empty()
    for row in accounts.iter_rows(named=True):
        records = network.truth.records(row["did"])
        assert row["records_fetched"] == len(records)
        assert row["records_rejected"] == sum(record.defect is not None for record in records)
        assert row["records_kept"] == sum(record.table is not None for record in records)


def test_tables_built_by_one_pool_are_those_that_are_built_one_by_one(
    collected: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = []

    @contextmanager
    def counted(workers: int) -> Iterator[Executor]:
        with worker_pool(workers) as pool:
            pools.append(pool)
            yield pool

    monkeypatch.setattr(pipeline, "worker_pool", counted)
    for table in TABLES:
        pipeline.build_table(collected, table, again=True)
    pipeline.build_undated_rows(collected, again=True)
    assert not pools
    before = table_hashes(collected)
    monkeypatch.setattr(build, "_SMALL_BYTES", 0)
    # Each window by itself.
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 1)
    pipeline.build_record_tables(collected, again=True)
    assert len(pools) == 1
    assert table_hashes(collected) == before


def test_accounts_in_many_lots_by_workers_are_the_same(
    collected: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next((collected.root / "tables/likes").glob("month=*/*.parquet"))
    sound, rows = path.read_bytes(), pl.read_parquet(path, hive_partitioning=False)
    # Of a record that stands there already, of an account that nobody knows, and of none.
    strange = rows.head(2).with_columns(
        did=pl.Series(["did:plc:" + 24 * "z", None]), uri=pl.Series(["at://strange", "at://nobody"])
    )
    pl.concat([rows, rows.head(1), strange]).write_parquet(path)
    stored = collected.root / "accounts.parquet"
    try:
        whole, one = accounting.build_accounts(collected), stored.read_bytes()
        monkeypatch.setattr("backfill_dagster.repos.ledger_lots.ACCOUNTS_AT_ONCE", 7)
        monkeypatch.setattr(accounting, "_PACKS_AT_ONCE", 1)
        monkeypatch.setattr(kept, "_COUNTS_AT_ONCE", 1)
        monkeypatch.setattr(accounting, "SMALL_BYTES", 0)
        lots = accounting.build_accounts(collected)
        many, groups = pl.read_parquet(stored), pq.read_metadata(stored).num_row_groups
        accounting.build_accounts(collected)
        again = pl.read_parquet(stored)
    finally:
        path.write_bytes(sound)
        monkeypatch.undo()
        accounting.build_accounts(collected)
    assert groups > 3
    assert many.equals(pl.read_parquet(BytesIO(one)))
    assert again.equals(many)
    for field in ("kinds", "reasons", "seen"):
        assert getattr(lots.sums, field).equals(getattr(whole.sums, field))
    assert replace(lots, sums=whole.sums) == whole
    assert (whole.unreconciled, whole.misplaced, whole.repeated_uris) == (1, {"likes": 3}, 2)
    assert whole.sums.accounts == many.height == many["did"].n_unique()


def test_what_became_of_the_records_is_told_by_host(
    collected: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_PACKS_AT_ONCE", 1)
    accounts = pl.read_parquet(collected.root / "accounts.parquet").drop_nulls("repo_rev")
    hosts = accounts["snapshot_host"].unique().to_list()
    for host, counts in pipeline.count_converted(collected, hosts).items():
        own = accounts.filter(pl.col("snapshot_host") == host)
        assert counts["records"].sum() == own["records_fetched"].sum() > 0
        rejected = counts.filter(pl.col("fate") == "rejected")["records"].sum()
        assert rejected == own["records_rejected"].sum()
        assert counts.select("table", "fate", "reason").is_unique().all()


def test_a_second_run_fetches_nothing_and_changes_no_byte(collected: Study, network: SandboxNetwork) -> None:
    before = table_hashes(collected)
    network.requests.clear()
    run_all(collected)
    assert network.requests.count(path=GET_REPO) == 0
    assert table_hashes(collected) == before


def test_a_rebuild_from_the_packs_alone_gives_the_same_tables(
    collected: Study, network: SandboxNetwork, tmp_path: Path
) -> None:
    before = table_hashes(collected)
    for key in sorted(collected.root.glob("records/**/*.parquet")):
        key.unlink()
    network.requests.clear()
    pipeline.convert_records(collected)
    pipeline.build_tables(collected)
    assert network.requests.count() == 0
    assert table_hashes(collected) == before


def test_settings_that_change_records_change_the_fingerprint(tmp_path: Path) -> None:
    plain = fingerprints.records_fingerprint(sandbox_study(tmp_path))
    dropped = sandbox_study(tmp_path, time_range={"outside": "drop"})
    slower = sandbox_study(tmp_path, processing={"requests_per_second": 1})
    assert fingerprints.records_fingerprint(dropped) != plain
    assert fingerprints.records_fingerprint(slower) == plain


def test_a_changed_period_and_type_list_gives_the_tables_of_a_fresh_run(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {
        "record_types": ["app.bsky.feed.like", "app.bsky.graph.follow"],
        "time_range": {"start_date": "2024-10-05", "end_date": "2024-11-20", "outside": "drop"},
    }
    first = tmp_path / "first"
    fresh = tmp_path / "fresh"
    first.mkdir()
    fresh.mkdir()
    run_all(sandbox_study(first))
    network.requests.clear()
    again = sandbox_study(first, **changed)
    accounts = run_all(again)
    assert network.requests.count(path=GET_REPO) == 0
    new = sandbox_study(fresh, **changed)
    run_all(new)
    assert set(table_hashes(again)) == set(table_hashes(new))
    for table in ("likes", "follows"):
        both = [read_table(study, table).sort("uri") for study in (again, new)]
        assert both[0].equals(both[1])
        believed = pl.read_parquet(again.root / f"tables/{table}/month=*/*.parquet", hive_partitioning=False)
        assert believed["in_range"].all()
    assert unreconciled(accounts).is_empty()
    assert not (again.root / "tables/posts").exists()


def test_a_host_that_is_down_costs_only_itself(network: SandboxNetwork, tmp_path: Path) -> None:
    study = sandbox_study(tmp_path, processing={"requests_per_second": 500, "max_retries": 1, "workers": 2})
    down = network.hosts[0]
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    network.faults.set_host(down, HostDown())
    try:
        reports = pipeline.fetch_repos(study)
        pipeline.convert_records(study)
        accounts = pipeline.build_tables(study)
    finally:
        network.faults.clear()
    assert [report.pds_host for report in reports if report.failed] == [down]
    failed = accounts.filter(pl.col("state") == "failed")
    assert set(failed["pds_host"]) == {down}
    assert set(failed["reason"]) == {"unreachable"}
    others = accounts.filter((pl.col("state") == "complete") & (pl.col("pds_host") != down))
    assert others.height > 20
    assert unreconciled(accounts).is_empty()

    network.requests.clear()
    accounts = run_all(study)
    asked = network.requests.all(path=GET_REPO)
    assert {request.host for request in asked} == {down}
    assert accounts.filter(pl.col("state") == "failed").is_empty()


def test_refreshing_fetches_only_what_is_not_known_to_be_unchanged(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    study = sandbox_study(tmp_path)
    before = run_all(study)
    tables = table_hashes(study)
    network.requests.clear()
    pipeline.fetch_repos(study, mode=FetchMode.REFRESH)
    complete = set(before.filter(pl.col("state") == "complete")["did"])
    assert {request.did for request in network.requests.all(path=GET_REPO)} == {
        truth.did
        for truth in network.truth.accounts()
        if truth.directory_state == "resolved" and truth.did not in complete
    }
    # One page tells of everyone on a host: far fewer requests than accounts.
    assert network.requests.count(path="listRepos") == len(network.hosts)
    assert network.requests.count(path="getLatestCommit") < len(network.hosts)
    pipeline.convert_records(study)
    after = pipeline.build_tables(study)
    assert table_hashes(study) == tables
    assert after.select("did", "state", "records_kept").equals(before.select("did", "state", "records_kept"))


def test_time_that_is_used_up_leaves_the_rest_for_the_next_run(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    pipeline.collect_source(sandbox_study(tmp_path))
    pipeline.resolve_accounts(sandbox_study(tmp_path))
    study = sandbox_study(tmp_path, processing={"requests_per_second": 500, "max_run_minutes": 1e-9})
    network.requests.clear()
    reports = pipeline.fetch_repos(study)
    assert network.requests.count(path=GET_REPO) == 0
    assert sum(report.left for report in reports) > 20
    assert not any(report.failed for report in reports)
    accounts = run_all(sandbox_study(tmp_path))
    assert accounts.filter(pl.col("state").is_in(["pending", "failed"])).is_empty()


def test_the_directory_is_not_waited_for_longer_than_the_run_may_take(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    pipeline.collect_source(sandbox_study(tmp_path))
    study = sandbox_study(tmp_path, processing={"max_run_minutes": 0.01, "workers": 2})
    with another_run_asks(network.plc_url.partition("://")[2], study):
        directory = resolved_directory(study)
    unasked = directory.filter(pl.col("state") == "not_asked")
    assert unasked.filter(pl.col("did").str.starts_with("did:plc:")).height > 50
    assert unasked["reason"].str.contains("max_run_minutes is over").all()
    assert unasked["reason"].str.contains("is being asked by another study").any()

    accounts = pipeline.build_tables(study)
    assert accounts.filter(pl.col("did").is_in(unasked["did"].implode()))["state"].unique().to_list() == [
        "pending"
    ]
    # They are no failures of the directory: the next run looks them up.
    assert accounting.unfinished_accounts(study)[0] == 0
    accounts = run_all(sandbox_study(tmp_path))
    assert accounts.filter(pl.col("state").is_in(["pending", "failed"])).is_empty()


@contextmanager
def another_run_asks(host: str, study: Study) -> Iterator[None]:
    """Have another run hold the lease of a host."""
    leases = LocalHostLeases(study.root.parent / ".leases", "another study")
    lease = asyncio.run(leases.take(HostGate(host, rate=1, burst=1, in_flight=1)))
    assert lease is not None
    yield
    asyncio.run(lease.release())


def test_what_an_interrupted_lookup_has_come_to_is_not_asked_for_again(
    network: SandboxNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = sandbox_study(tmp_path)
    storage = StudyStorage(study.location)
    pipeline.collect_source(study)
    monkeypatch.setattr(resolve, "CHECKPOINT_ROWS", 10)
    write, sizes = StudyStorage.write, []

    def write_some(self: StudyStorage, key: str, frame: pl.DataFrame, *args: Any, **named: Any) -> StoredFile:
        if key.startswith(study_files.UNFINISHED_DIRECTORY_FOLDER):
            sizes.append(frame.height)
        if len(sizes) == 4:
            raise StorageError("the disk is full")
        return write(self, key, frame, *args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(StudyStorage, "write", write_some)
        with pytest.raises(StorageError, match="disk is full"):
            pipeline.resolve_accounts(study)
    # Each part is of its own rows: together they are written once, however many there are.
    assert sizes == [10, 10, 10, 10]
    assert len(storage.keys(study_files.UNFINISHED_DIRECTORY_FOLDER)) == 3

    network.requests.clear()
    directory = resolved_directory(study)
    asked = {request.path.strip("/") for request in network.requests.all()}
    assert len(set(network.dids) - asked) >= 25  # but for those whose host failed
    assert directory.height == len(network.dids)
    assert storage.keys(study_files.UNFINISHED_DIRECTORY_FOLDER) == []


def test_accounts_that_left_the_source_leave_the_tables_and_are_flagged(tmp_path: Path) -> None:
    study = sandbox_study(tmp_path)
    before = run_all(study)
    gone = before.filter(pl.col("records_kept") > 0)["did"][0]
    remaining = [did for did in sandbox().dids if did != gone]
    smaller = sandbox_study(tmp_path, source={"type": "inline", "dids": remaining})
    after = run_all(smaller)
    row = after.filter(pl.col("did") == gone).row(0, named=True)
    assert (row["in_source"], row["shown"], row["records_kept"]) == (False, False, 0)
    assert unreconciled(after).is_empty()
    assert all(gone not in set(read_table(smaller, table)["did"]) for table in TABLES)


def is_did(value: object) -> bool:
    return isinstance(value, str) and value.startswith("did:")


def is_reference(value: object) -> bool:
    return isinstance(value, dict) and str(value.get("uri")).startswith("at://did:") and "cid" in value


def expected_fields(record: RecordTruth) -> dict[str, Any]:
    """Say, straight from a record's JSON, what its row must hold; only for fields of the right type."""
    value = record.value or {}
    if record.collection in ("app.bsky.graph.follow", "app.bsky.graph.block"):
        subject = value.get("subject")
        return {"subject_did": subject} if is_did(subject) else {}
    if record.collection in ("app.bsky.feed.like", "app.bsky.feed.repost"):
        return expected_subject(value.get("subject"))
    return {
        **expected_text(value),
        **expected_reply(value.get("reply")),
        **expected_embed(value.get("embed")),
    }


def expected_subject(subject: Any) -> dict[str, Any]:
    if not is_reference(subject):
        return {}
    _, _, did, collection, _ = subject["uri"].split("/")
    return {
        "subject_uri": subject["uri"],
        "subject_cid": subject["cid"],
        "subject_did": did,
        "subject_collection": collection,
    }


def expected_text(value: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if isinstance(value.get("text"), str):
        fields["text"] = value["text"]
    langs = value.get("langs")
    if isinstance(langs, list) and all(isinstance(lang, str) for lang in langs):
        fields["langs"] = langs
    return fields


def expected_reply(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, dict) or not all(is_reference(reply.get(end)) for end in ("parent", "root")):
        return {}
    return {
        "reply_parent_uri": reply["parent"]["uri"],
        "reply_root_cid": reply["root"]["cid"],
        "reply_parent_did": reply["parent"]["uri"].split("/")[2],
    }


def expected_embed(embed: Any) -> dict[str, Any]:
    if not isinstance(embed, dict) or not isinstance(embed.get("$type"), str):
        return {}
    fields: dict[str, Any] = {"embed_type": embed["$type"]}
    if embed["$type"] == "app.bsky.embed.record":
        fields["quoted_uri"] = embed["record"]["uri"]
    if embed["$type"] == "app.bsky.embed.external":
        fields["external_uri"] = embed["external"]["uri"]
    if embed["$type"] == "app.bsky.embed.images":
        fields["alt_texts"] = [image.get("alt") for image in embed["images"]]
    return fields
