"""Withdrawal from a whole study: gone from every file, the sums hold, and it does not come back."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import pipeline, purging, study_files
from backfill_dagster.attrition.steps import ATTRITION_KEY
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError, StorageError
from backfill_dagster.frozen.freeze import freeze, list_frozen
from backfill_dagster.manifest.keys import FILES_KEY, SNAPSHOTS_KEY
from backfill_dagster.purge import rewrite
from backfill_dagster.purge.mentions import mask_text
from backfill_dagster.purge.report import PurgeReport
from backfill_dagster.purge.rewrite import count_rows
from backfill_dagster.purge.tombstones import TOMBSTONES_KEY, Tombstones
from backfill_dagster.records.first_for_subject import SUBJECT_COLUMNS
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.accounts import unreconciled
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.studies import sandbox, sandbox_study, table_hashes

SETTINGS = SandboxSettings(seed=5, accounts=54, hosts=2, records=25)
PROCESSING = {"requests_per_second": 500, "workers": 1, "batch_size": 7}
# Few months, so that building them is not most of the time.
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-11-30", "outside": "drop"}
TABLES = ["posts", "replies", "likes", "reposts", "follows", "blocks"]
POST = "app.bsky.feed.post"
GET_REPO = "com.atproto.sync.getRepo"


def purge_study(folder: Path, **parts: object) -> Study:
    folder.mkdir(exist_ok=True)
    return sandbox_study(
        folder, "study", SETTINGS, **{"processing": PROCESSING, "time_range": PERIOD, **parts}
    )


def run_all(study: Study) -> pl.DataFrame:
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    return pipeline.build_tables(study)


def read_tables(study: Study) -> dict[str, pl.DataFrame]:
    return {
        table: pl.concat(
            [
                pl.read_parquet(study.root / f"tables/{table}/month=*/*.parquet", hive_partitioning=False),
                pl.read_parquet(study.root / f"undated/{table}/*.parquet"),
            ]
        ).sort("uri")
        for table in TABLES
    }


def read_accounts(study: Study) -> pl.DataFrame:
    return pl.read_parquet(study.root / study_files.ACCOUNTS_KEY)


def copy_of(study: Study, folder: Path) -> Study:
    """Return the same study on a copy of its data."""
    shutil.copytree(study.root.parent, folder / "data")
    return study.model_copy(update={"storage": study.storage.model_copy(update={"path": folder / "data"})})


@dataclass(frozen=True)
class Purged:
    """A study that was purged: of whom, of which records, how it was before, and what was told."""

    study: Study
    dids: tuple[str, ...]
    author: str
    uris: tuple[str, ...]
    before: Study
    tables: dict[str, pl.DataFrame]
    accounts: pl.DataFrame
    report: PurgeReport


@pytest.fixture(scope="module")
def network() -> Iterator[SandboxNetwork]:
    network = sandbox(SETTINGS)
    network.faults.clear()
    yield network
    network.faults.clear()


@pytest.fixture(scope="module")
def collected(network: SandboxNetwork, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = purge_study(
        tmp_path_factory.mktemp("collected"),
        derived={"engagement": True, "threads": True, "study_user_activity": True},
        discovery={},
        snapshot="v1",
    )
    run_all(study)
    freeze(study)
    return study


def mentioned(network: SandboxNetwork, did: str) -> int:
    """Count the records of others that name an account."""
    return sum(
        did in str(record.value)
        for other in network.dids
        if other != did
        for record in network.truth.records(other)
    )


@pytest.fixture(scope="module")
def purged(collected: Study, network: SandboxNetwork, tmp_path_factory: pytest.TempPathFactory) -> Purged:
    tables, accounts = read_tables(collected), read_accounts(collected)
    stored = accounts.filter(pl.col("records_kept") > 5)["did"].to_list()
    named = [did for did in stored if mentioned(network, did)]
    plc = next(did for did in named if did.startswith("did:plc:"))
    web = next(did for did in named if did.startswith("did:web:"))
    without_repo = next(account.did for account in network.truth.accounts() if account.state == "takendown")
    rejecting = accounts.filter(pl.col("records_rejected") > 0)["did"][0]
    author = next(did for did in stored if did not in (plc, web, rejecting))
    rows = pl.concat([frame.select("uri", "did") for frame in tables.values()]).filter(did=author)
    out_of_range = next(
        record.uri
        for record in network.truth.records(author)
        if record.collection == POST and record.uri not in set(rows["uri"])
    )
    rejected = next(
        record.uri
        for record in network.truth.records(rejecting)
        if record.defect is not None and record.collection == POST
    )
    uris = (*rows["uri"].head(3), out_of_range, rejected)

    folder = tmp_path_factory.mktemp("purged")
    study = copy_of(collected, folder)
    _interrupt_lookups(study)
    listed = folder / "withdrawn.txt"
    listed.write_text("\n".join(["# withdrawn", plc, web, *uris]))
    report = purging.purge(study, dids=[without_repo], file=listed)
    return Purged(study, (plc, web, without_repo), author, uris, collected, tables, accounts, report)


def _interrupt_lookups(study: Study) -> None:
    """Leave what a lookup of everybody has come to if it ends too early, in two parts."""
    storage = StudyStorage(study.location)
    rows = storage.read(study_files.DIRECTORY_KEY).drop("state_since")
    for number, part in enumerate((rows.head(20), rows.tail(-20))):
        storage.write(f"{study_files.UNFINISHED_DIRECTORY_FOLDER}/part-{number:05d}.parquet", part)


def test_no_file_holds_the_did_any_more(purged: Purged) -> None:
    for did in purged.dids:
        assert len(files_with(purged.before.root, did)) >= 3
        assert files_with(purged.study.root, did) == []
    for did in purged.dids[:2]:
        assert any("/windows/" in file for file in files_with(purged.before.root, did))
    assert not any((purged.study.root / ".scratch").iterdir())


def test_records_are_gone_and_their_account_stays(purged: Purged) -> None:
    for uri in purged.uris[:3]:
        rkey = uri.rpartition("/")[2]
        assert files_with(purged.before.root, uri)
        assert files_with(purged.study.root, uri) == []
        blocks = pl.concat(map(pl.read_parquet, purged.study.root.glob("repos/*/*.blocks-*.parquet")))
        assert blocks.filter(did=purged.author, rkey=rkey).is_empty()
    [row] = read_accounts(purged.study).filter(did=purged.author).iter_rows(named=True)
    [before] = purged.accounts.filter(did=purged.author).iter_rows(named=True)
    assert row["records_fetched"] == before["records_fetched"]
    assert row["records_kept"] == before["records_kept"] - 3
    assert {"reason": "purged", "records": 4} in row["filtered"]


def test_a_rejected_record_is_purged_by_its_uri_too(purged: Purged) -> None:
    def rejects(study: Study) -> pl.DataFrame:
        return pl.concat(map(pl.read_parquet, study.root.glob("records/*/rejects/*.parquet")))

    uri = purged.uris[-1]
    assert rejects(purged.before).filter(uri=uri).height == 1
    assert rejects(purged.study).filter(uri=uri).is_empty()
    assert purged.report.removed["rejects"] >= 1


def test_the_sums_still_hold_and_every_other_account_is_as_it_was(purged: Purged) -> None:
    accounts = read_accounts(purged.study)
    assert unreconciled(accounts).is_empty()
    assert set(accounts["did"]) == set(purged.accounts["did"]) - set(purged.dids)
    touched = [purged.author, *(uri.split("/")[2] for uri in purged.uris)]
    others = purged.accounts.filter(~pl.col("did").is_in([*purged.dids, *touched]))
    kept = accounts.filter(~pl.col("did").is_in(touched))
    # What the directory says of others can name somebody who is purged now.
    assert kept.drop("detail").equals(others.drop("detail"))


@pytest.mark.parametrize("table", TABLES)
def test_the_rows_of_others_are_equal_but_for_the_name_that_is_masked(purged: Purged, table: str) -> None:
    def masked(text: str) -> str:
        return mask_text(text, lambda did: did in purged.dids)

    before = purged.tables[table].filter(
        ~pl.col("did").is_in(purged.dids) & ~pl.col("uri").is_in(purged.uris)
    )
    texts = [name for name, kind in before.schema.items() if kind == pl.String]
    lists = [name for name, kind in before.schema.items() if kind == pl.List(pl.String)]
    expected = before.with_columns(
        pl.col(texts).map_elements(masked, pl.String),
        pl.col(lists).list.eval(pl.element().map_elements(masked, pl.String)),
    )
    if table in SUBJECT_COLUMNS:
        # Of two purged subjects nobody can tell any more whether they were the same.
        subject = pl.col(SUBJECT_COLUMNS[table])
        alike = subject.str.contains("did:(plc|web):xxx") & pl.struct("did", subject).is_duplicated()
        expected = expected.with_columns(first_for_subject=pl.when(~alike).then("first_for_subject"))
    after = read_tables(purged.study)[table]
    assert after.equals(expected)
    # The sandbox's blocks are of nobody in it.
    assert before.equals(expected) == (table == "blocks")


@pytest.mark.parametrize("at_once", [1, 3])
def test_files_are_counted_some_at_a_time(
    purged: Purged, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    storage = StudyStorage(purged.study.root)
    keys = storage.keys("tables")
    assert len(keys) > 3
    rows = pl.concat(storage.read(key).select("did", "uri") for key in keys)
    did, uri = rows.row(-1)
    of_account = rows.filter(did=did)
    monkeypatch.setattr(rewrite, "_FILES_AT_ONCE", at_once)
    everything = Tombstones(b"salt", dids=frozenset({hashed(did)}))
    assert count_rows(storage, keys, everything, by_uri=True) == of_account.height
    record = Tombstones(b"salt", records=frozenset({hashed(uri)}), accounts=frozenset({hashed(did)}))
    assert count_rows(storage, keys, record, by_uri=True) == 1
    assert count_rows(storage, keys, record, by_uri=False) == 0


def hashed(text: str) -> bytes:
    return hashlib.sha256(b"salt" + text.encode()).digest()


def test_what_is_left_of_a_frozen_build_is_what_a_build_of_the_purged_study_holds(purged: Purged) -> None:
    study, storage = purged.study, StudyStorage(purged.study.root)
    assert purged.report.removed["frozen"] == sum(
        purged.report.removed[kind] for kind in ("tables", "undated")
    )
    freeze(study.model_copy(update={"snapshot": "v2"}))
    assert check_frozen(storage, 1)[1] == []
    [told] = next(build for build in list_frozen(study) if build.label == "v1").purges
    assert (told["accounts"], told["rows"]) == (3, purged.report.removed["frozen"])
    assert told["derived_again"]["tables"] == ["engagement", "study_user_activity", "threads"]
    keys = [key.removeprefix("frozen/v2/") for key in storage.keys("frozen/v2")]
    assert len(keys) > 20
    # The losses, and what the packs are called, are those of the build as it was frozen.
    for key in set(keys) - {ATTRITION_KEY, FILES_KEY, SNAPSHOTS_KEY}:
        ours, theirs = storage.read(f"frozen/v1/{key}"), storage.read(f"frozen/v2/{key}")
        if key == study_files.ACCOUNTS_KEY:
            # Of a record that was not in the tables, the frozen build does not know that it was purged.
            counts = ["filtered", "records_filtered", "rejected", "records_rejected"]
            ours, theirs = ours.drop(counts), theirs.drop(counts)
        assert ours.equals(theirs), key


def test_the_report_counts_what_was_there(purged: Purged, network: SandboxNetwork) -> None:
    report = purged.report
    rows = sum(
        frame.filter(pl.col("did").is_in(purged.dids) | pl.col("uri").is_in(purged.uris)).height
        for frame in purged.tables.values()
    )
    assert (report.accounts, report.records) == (3, 5)
    assert report.removed["tables"] + report.removed["undated"] == rows
    assert report.removed["records"] == rows
    assert report.removed["blocks"] == 5 + sum(len(network.truth.records(did)) for did in purged.dids)
    assert {report.removed[kind] for kind in ("source_dids", "accounts", "attempts")} == {3}
    # In the directory, and in what an interrupted lookup of all but a few had come to.
    assert 3 < report.removed["directory"] <= 6
    assert report.masked == sum(
        any(did in str(record.value) for did in purged.dids)
        for other in network.dids
        if other not in purged.dids
        for record in network.truth.records(other)
        if record.uri not in purged.uris
    )
    assert report.named_in_config == 3
    assert not any(did in repr(report) for did in purged.dids)


def test_packs_name_the_blocks_files_that_are_there(purged: Purged) -> None:
    storage = StudyStorage(purged.study.root)
    named = set()
    for _, _, key in pack_keys(storage):
        folder = key.rpartition("/")[0]
        for file in storage.read(key)["blocks_files"].to_list()[0] or []:
            blocks = f"{folder}/{file['name']}"
            named.add(blocks)
            assert storage.sha256(blocks) == file["sha256"]
            assert storage.size(blocks) == file["bytes"]
            assert storage.read(blocks).height == file["rows"]
    assert named == set(storage.keys("repos", "*.blocks-*.parquet"))


def test_packs_that_hold_nothing_of_it_are_not_touched(purged: Purged) -> None:
    before, after = (
        {key: storage.sha256(key) for _, _, key in pack_keys(storage)}
        for storage in (StudyStorage(purged.before.root), StudyStorage(purged.study.root))
    )
    same = before.keys() & after.keys()
    assert all(before[key] == after[key] for key in same)
    assert 0 < len(after.keys() - same) <= len(before)


def test_another_run_asks_for_nothing_of_it_and_changes_nothing(
    purged: Purged, network: SandboxNetwork
) -> None:
    before = table_hashes(purged.study)
    network.requests.clear()
    accounts = run_all(purged.study)
    assert all(network.requests.all(did=did) == [] for did in purged.dids)
    assert not any(
        did.removeprefix("did:web:") == request.host
        for did in purged.dids
        for request in network.requests.all()
    )
    assert network.requests.count(path=GET_REPO) == 0
    assert table_hashes(purged.study) == before
    assert set(accounts["did"]).isdisjoint(purged.dids)
    assert all(files_with(purged.study.root, did) == [] for did in purged.dids)
    rejects = pl.read_parquet(purged.study.root / study_files.SOURCE_REJECTS_KEY)
    assert rejects.to_dict(as_series=False)["reason"] == ["purged"] * 3
    assert rejects["input"].to_list() == [None] * 3


def test_what_is_fetched_again_comes_in_without_it(
    purged: Purged, network: SandboxNetwork, tmp_path: Path
) -> None:
    study = copy_of(purged.study, tmp_path)
    shutil.rmtree(study.root / "repos")
    shutil.rmtree(study.root / "records")
    network.requests.clear()
    accounts = run_all(study)
    assert network.requests.count(path=GET_REPO) > 40
    assert unreconciled(accounts).is_empty()
    assert [files_with(study.root, did) for did in purged.dids] == [[], [], []]
    changing = ["repo_rev", "fetched_at"]
    for table, rows in read_tables(purged.study).items():
        assert (
            read_tables(study)[table].drop(changing, strict=False).equals(rows.drop(changing, strict=False))
        )


def test_a_pack_whose_removal_was_interrupted_counts_once_and_is_purged_by_the_next(
    purged: Purged, tmp_path: Path
) -> None:
    study = copy_of(purged.study, tmp_path)
    # Killed after the new packs were published: the old ones are still there.
    shutil.copytree(purged.before.root / "repos", study.root / "repos", dirs_exist_ok=True)
    assert len(pack_keys(StudyStorage(study.root))) > len(pack_keys(StudyStorage(purged.study.root)))
    assert study_files.shown_snapshots(study)["did"].is_unique().all()
    report = purging.purge(study, dids=purged.dids, uris=purged.uris)
    assert report.removed["attempts"] == 3
    assert [files_with(study.root, did) for did in purged.dids] == [[], [], []]
    assert unreconciled(read_accounts(study)).is_empty()
    for table, rows in read_tables(purged.study).items():
        assert read_tables(study)[table].equals(rows)


def test_worker_processes_take_out_the_same(
    collected: Study, purged: Purged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "SMALL_BYTES", 0)
    study = copy_of(collected, tmp_path)
    _interrupt_lookups(study)
    report = purging.purge(study, dids=purged.dids, uris=purged.uris, rebuild=lambda _: None)
    assert report == purged.report
    packs = [[key for _, _, key in pack_keys(StudyStorage(done.root))] for done in (study, purged.study)]
    assert packs[0] == packs[1]


def test_one_that_ends_early_is_unfinished_until_the_next_one_has_finished_it(
    collected: Study, tmp_path: Path
) -> None:
    study = copy_of(collected, tmp_path)
    did = read_tables(study)["posts"]["did"][0]

    def fail(_: Study) -> None:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError):
        purging.purge(study, dids=[did], rebuild=fail)
    assert purging.is_purge_unfinished(study)
    assert files_with(study.root / "tables", did)
    # A run of the study does not bring it back meanwhile.
    assert did not in set(pipeline.collect_source(study).dids["did"])

    report = purging.purge(study)
    assert report.removed["tables"] > 0
    assert not purging.is_purge_unfinished(study)
    assert files_with(study.root, did) == []
    assert unreconciled(read_accounts(study)).is_empty()


def test_again_or_of_a_stranger_it_changes_nothing_but_leaves_a_tombstone(
    purged: Purged, tmp_path: Path
) -> None:
    study = copy_of(purged.study, tmp_path)
    stranger = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
    # The list of all files has the tombstones' digest.
    told = {study.root / TOMBSTONES_KEY, study.root / FILES_KEY}
    before = {path: path.read_bytes() for path in study.root.rglob("*.parquet") if path not in told}
    report = purging.purge(study, dids=[stranger, *purged.dids], uris=purged.uris)
    assert not report.changed
    assert set(report.removed.values()) == {0}
    assert {path: path.read_bytes() for path in before} == before
    rows = pl.read_parquet(study.root / TOMBSTONES_KEY)
    assert rows.height == 3 + 5 + 1
    assert rows["removed_at"].null_count() == 0


def test_what_is_malformed_changes_nothing_at_all(purged: Purged, tmp_path: Path) -> None:
    study = copy_of(purged.study, tmp_path)
    before = {path: path.read_bytes() for path in study.root.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"dids\[1\]"):
        purging.purge(study, dids=["did:plc:z72i7hdynmk6r22z27h6tvur", "did:plc:short"])
    assert {path: path.read_bytes() for path in study.root.rglob("*") if path.is_file()} == before


def test_before_the_first_run_it_keeps_an_account_from_ever_being_collected(
    network: SandboxNetwork, tmp_path: Path
) -> None:
    did = network.dids[0]
    study = purge_study(tmp_path / "new", source={"type": "inline", "dids": [did, network.dids[1], did]})
    assert not purging.purge(study, dids=[did]).changed
    collected = pipeline.collect_source(study)
    assert collected.dids["did"].to_list() == [network.dids[1]]
    assert collected.rejects["reason"].to_list() == ["purged", "purged"]
    assert files_with(study.root, did) == []


@pytest.mark.parametrize(
    ("parts", "after_days", "states"),
    [
        ({}, 1000, set()),
        ({"purge_deleted_after_days": 3}, 2, set()),
        ({"purge_deleted_after_days": 3}, 4, {"tombstoned"}),
        ({"inactive_accounts": "purge", "purge_deleted_after_days": 3}, 2, set()),
        (
            {"inactive_accounts": "purge"},
            0,
            {"tombstoned", "takendown", "suspended", "deactivated", "not_found"},
        ),
    ],
)
def test_accounts_that_are_gone_are_purged_when_their_time_is_up(
    collected: Study, tmp_path: Path, parts: dict[str, object], after_days: int, states: set[str]
) -> None:
    study = copy_of(collected, tmp_path).model_copy(update=parts)
    before = read_accounts(study)
    now = datetime.now(UTC) + timedelta(days=after_days)
    rebuilt: list[Study] = []
    report = purging.purge_expired(study, now, rebuild=rebuilt.append)
    gone = before.filter(pl.col("state").is_in(sorted(states)))
    assert set(gone["state"]) == states
    assert (report.accounts if report else 0) == gone.height
    assert bool(states) == (report is not None) == bool(rebuilt)
    for key in (study_files.DIRECTORY_KEY, study_files.SOURCE_KEY):
        assert set(pl.read_parquet(study.root / key)["did"]) == set(before["did"]) - set(gone["did"])
    assert pipeline.hosts_to_fetch(study, FetchMode.UNSETTLED) == []


def test_inactive_accounts_to_be_purged_are_hidden_until_then(collected: Study) -> None:
    waiting = collected.model_copy(update={"inactive_accounts": "purge"})
    assert study_files.shown_snapshots(waiting).equals(study_files.shown_snapshots(collected))
