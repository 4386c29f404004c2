"""A study that is verified: it holds as it was built, and whatever is changed about it is found. Nobody is asked."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from backfill_dagster import accounting, pipeline, purging, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.dictionary.resources import study_resources
from backfill_dagster.directory.evidence import DOCUMENTS_FOLDER
from backfill_dagster.errors import ReconciliationError
from backfill_dagster.frozen.freeze import freeze
from backfill_dagster.manifest.canonical import Told
from backfill_dagster.manifest.files import covered_files
from backfill_dagster.manifest.keys import (
    CERTIFICATE_KEY,
    FILES_KEY,
    MANIFEST_KEY,
    SNAPSHOTS_KEY,
    VERDICTS_KEY,
)
from backfill_dagster.manifest.written import write_manifest
from backfill_dagster.records.filter_lists import FILTERS_FOLDER, digest_of
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.build import table_keys
from backfill_dagster.tables.ledger import ledger_key
from backfill_dagster.verification.lists import check_lists
from backfill_dagster.verification.verdicts import FileProblem, SnapshotVerdict
from backfill_dagster.verification.verify import Verification, verify
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.studies import sandbox
from backfill_dagster_tests.verification import mutations
from backfill_dagster_tests.verification.mutations import checked_files
from backfill_dagster_tests.verification.packed import Change, Forgery
from backfill_dagster_tests.verification.studies import (
    SETTINGS,
    collected_study,
    copy_of,
    kept,
    rows_of,
    wrong_files,
)

POSTS = "tables/posts/month=2024-10/part-00000.parquet"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that was collected, built, and verified once."""
    study = collected_study(tmp_path_factory.mktemp("collected"))
    assert verify(study).holds
    return study


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Study:
    return copy_of(study, tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a verification asks nobody")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def problems(done: Verification) -> set[str]:
    return set(done.problems["problem"])


@pytest.mark.usefixtures("no_network")
def test_what_was_collected_holds_and_nobody_is_asked(study: Study) -> None:
    asked_before = len(sandbox(SETTINGS).requests.all())
    done = verify(study)
    assert (done.holds, done.problems.height) == (True, 0)
    states = rows_of(study, study_files.ACCOUNTS_KEY).group_by("state").len()
    complete = states.filter(state="complete")["len"].item()
    assert done.counts == {"nothing_stored": SETTINGS.accounts - complete, "proven": complete}
    # The one that moved is known by its audit log alone.
    assert done.certificate.content["verdicts"]["key_sources"] == {
        "did_document": complete - 1,
        "plc_audit_log": 1,
    }
    assert done.certificate.content["records"] == rows_of(study, SNAPSHOTS_KEY)["records"].sum()
    assert done.certificate.content["not_looked_at"] == []
    assert len(sandbox(SETTINGS).requests.all()) == asked_before


def test_two_verifications_give_the_same_certificate_but_for_its_time(study: Study) -> None:
    first = Told.from_bytes((study.root / CERTIFICATE_KEY).read_bytes())
    again = verify(study, run_ids=["a run"])
    assert again.certificate.content == first.content
    assert again.certificate.made["dagster_runs"] == ["a run"]
    told = Told.from_bytes((study.root / MANIFEST_KEY).read_bytes())
    assert first.content["manifest_sha256"] == told.digest


def test_worker_processes_come_to_the_same(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first = verify(study)
    monkeypatch.setattr(sys.modules["backfill_dagster.verification.verify"], "SMALL_BYTES", 0)
    assert verify(study).certificate.content == first.certificate.content


def test_accounts_in_many_ranges_come_to_the_same_manifest_and_certificate(
    study: Study, copy: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = verify(study)
    monkeypatch.setattr("backfill_dagster.repos.ledger_lots.ACCOUNTS_AT_ONCE", 2)
    told = write_manifest(copy)
    assert pq.read_metadata(copy.root / SNAPSHOTS_KEY).num_row_groups > 5
    for key in (FILES_KEY, SNAPSHOTS_KEY):
        assert_frame_equal(rows_of(copy, key), rows_of(study, key))
    before = Told.from_bytes((study.root / MANIFEST_KEY).read_bytes()).content
    # The copy lies elsewhere.
    of_place = {"accounts", "config", "config_sha256"}
    assert {name: told.content[name] for name in told.content.keys() - of_place} == {
        name: before[name] for name in before.keys() - of_place
    }
    again = verify(copy)
    assert_frame_equal(again.verdicts, first.verdicts)
    expected = first.certificate.content
    assert again.certificate.content == {
        **expected,
        "manifest_sha256": told.digest,
        "verdicts": {
            **expected["verdicts"],
            "sha256": again.certificate.content["verdicts"]["sha256"],
        },
    }


def test_two_builds_give_the_same_manifest_but_for_its_time(copy: Study) -> None:
    first = Told.from_bytes((copy.root / MANIFEST_KEY).read_bytes())
    pipeline.convert_records(copy, again=True)
    pipeline.build_tables(copy, again=True)
    again = Told.from_bytes((copy.root / MANIFEST_KEY).read_bytes())
    # The copy lies elsewhere.
    content = {**again.content, "config": first.content["config"]}
    content["config_sha256"] = first.content["config_sha256"]
    assert content == first.content


def test_the_manifest_tells_of_every_file_and_snapshot(study: Study) -> None:
    told = json.loads((study.root / MANIFEST_KEY).read_text())["content"]
    files = rows_of(study, FILES_KEY)
    assert files["key"].to_list() == [file.key for file in covered_files(StudyStorage(study.root))]
    posts = files.filter(key=POSTS).row(0, named=True)
    assert posts["rows"] == rows_of(study, POSTS).height
    assert posts["bytes"] == (study.root / POSTS).stat().st_size
    snapshots = rows_of(study, SNAPSHOTS_KEY)
    accounts = rows_of(study, study_files.ACCOUNTS_KEY).filter(state="complete")
    assert snapshots["repo_rev"].to_list() == accounts["repo_rev"].to_list()
    assert snapshots.select("commit_cid", "signing_key").null_count().row(0) == (0, 0)
    stages = told["stages"]
    assert stages["source_dids"] == {"in": SETTINGS.accounts, "out": SETTINGS.accounts, "left_out": {}}
    records = stages["records"]
    assert records["in"] == records["kept"] + sum(
        sum(records[fate].values()) for fate in ("filtered", "rejected")
    )
    assert records["in"] == stages["repos"]["records"]
    kept_rows = [sum(stages["tables"][folder].values()) for folder in ("tables", "undated")]
    assert records["kept"] == sum(kept_rows)
    assert told["files"]["sha256"] == StudyStorage(study.root).sha256(FILES_KEY)


# What only some studies have, at some times, or what no manifest covers.
NOT_THERE = {
    *("purged", "directory_unfinished", "handed_over", "looked_over", "handed_over_files", "comparisons"),
    *("audit_log", "run_metadata", "user_metadata"),
}


def test_every_kind_of_stored_file_is_there_to_be_changed(study: Study) -> None:
    """What is enumerated below is every kind of file that a study like this has."""
    files = set(checked_files(study))
    kinds = {
        resource.name: any(files.intersection(study.root.glob(glob)) for glob in resource.files)
        for resource in study_resources(study)
    }
    missing = {name for name, is_there in kinds.items() if not (is_there or name.startswith("legacy"))}
    assert missing <= NOT_THERE


def covered(study: Study) -> list[Path]:
    return [study.root / file.key for file in covered_files(StudyStorage(study.root))]


def own_files(study: Study) -> list[Path]:
    """Return the files of the manifest and of the certificate themselves, without which nothing is compared."""
    return sorted(set(checked_files(study)) - set(covered(study)))


def flip(path: Path, place: Callable[[int], int]) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[place(len(data))] ^= 1
    path.write_bytes(data)


def wrong_keys(study: Study, problem: FileProblem) -> set[Path]:
    found = wrong_files(study)
    assert {one.problem for one in found} == {problem}
    return {study.root / one.file for one in found if one.file is not None}


@pytest.mark.parametrize("place", [lambda size: 0, lambda size: size // 2, lambda size: size - 1])
def test_a_flipped_byte_in_any_file_is_found(place: Callable[[int], int], study: Study, copy: Study) -> None:
    files = covered(copy)
    assert len(files) > 35
    for path in files:
        flip(path, place)
    assert wrong_keys(copy, FileProblem.CHANGED) == set(files)
    # Each by itself is found, if it is among all.
    for path in own_files(study):
        with kept(path):
            flip(path, place)
            assert wrong_files(study), path.name
    assert wrong_files(study) == []


def test_a_file_that_is_gone_or_added_is_found(study: Study, copy: Study) -> None:
    files = covered(copy)
    for path in files:
        path.rename(path.with_name(f"other-{path.name}"))
    found = wrong_files(copy)
    assert {copy.root / one.file for one in found if one.problem is FileProblem.MISSING} == set(files)  # type: ignore[operator]
    others = {path.with_name(f"other-{path.name}") for path in files}
    assert {copy.root / one.file for one in found if one.problem is FileProblem.ADDED} == others  # type: ignore[operator]
    for path in own_files(study):
        with kept(path):
            path.unlink()
            assert wrong_files(study), path.name
        other = path.with_name(f"other-{path.name}")
        other.write_bytes(path.read_bytes())
        assert wrong_files(study), other.name
        other.unlink()
    assert wrong_files(study) == []


# One file of each kind that decides what else is looked at.
DAMAGED: dict[str, tuple[str, set[str]]] = {
    study_files.DIRECTORY_KEY: ("changed", {"accounts", "records", "tables", "derived"}),
    "repos/*/????????????????????.parquet": ("changed", {"tables", "derived"}),
    "repos/*/*.blocks-0.parquet": ("changed", {"tables", "derived"}),
    "records/*/posts/*.parquet": ("changed", set()),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_fails_the_verification_and_costs_what_rests_on_it(kind: str, copy: Study) -> None:
    path = max(copy.root.glob(kind), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)
    done = verify(copy)
    problem, not_looked_at = DAMAGED[kind]
    assert not done.holds
    assert done.problems.filter(problem=problem)["file"].to_list() == [path.relative_to(copy.root).as_posix()]
    assert set(done.certificate.content["not_looked_at"]) == not_looked_at
    if kind.startswith("repos"):
        damaged = done.verdicts.filter(verdict=SnapshotVerdict.DAMAGED_FILE.value)
        snapshots = rows_of(copy, SNAPSHOTS_KEY).filter(pack=path.name[:20])
        assert damaged["did"].to_list() == snapshots["did"].to_list() != []


def test_accounts_of_a_pack_that_cannot_be_read_are_none_without_a_snapshot(copy: Study) -> None:
    """It has the digests that it must have, and is no pack: so it is read, and then given up."""
    storage = StudyStorage(copy.root)
    [*_, key] = max(pack_keys(storage), key=lambda found: storage.size(found[2]))
    rows = storage.read(key)
    dids = rows.filter(outcome="complete")["did"]
    storage.write(key, rows.with_columns(obtained=pl.lit("by magic")))
    write_manifest(copy)
    done = verify(copy)
    assert not done.holds
    assert FileProblem.UNREADABLE.value in problems(done)
    damaged = done.verdicts.filter(verdict=SnapshotVerdict.DAMAGED_FILE.value)
    assert damaged["did"].to_list() == dids.sort().to_list()


# --- somebody who mends all that tells of what was changed ---


def first_part(study: Study, table: str) -> str:
    return next(key for key in table_keys(StudyStorage(study.root), table) if rows_of(study, key).height > 1)


def write_mended(study: Study, table: str, key: str, rows: pl.DataFrame) -> None:
    """Write rows of a table, and what the ledger says of their file."""
    storage = StudyStorage(study.root)
    stored = storage.write(key, rows)
    own = (pl.col("folder") == key.rpartition("/")[0]) & (pl.col("part") == key.rpartition("/")[2])
    ledger = storage.read(ledger_key(table)).with_columns(
        rows=pl.when(own).then(stored.rows).otherwise("rows").cast(pl.Int64),
        bytes=pl.when(own).then(stored.bytes).otherwise("bytes").cast(pl.Int64),
    )
    storage.write(ledger_key(table), ledger)


def test_rows_that_are_changed_with_everything_mended_are_found(copy: Study) -> None:
    storage = StudyStorage(copy.root)
    keys = {table: first_part(copy, table) for table in ("posts", "replies", "follows")}
    posts, replies, follows = (rows_of(copy, key) for key in keys.values())
    never_said = (
        pl.when(pl.int_range(pl.len()) == 1).then(pl.lit("never said")).otherwise("text").alias("text")
    )
    write_mended(copy, "posts", keys["posts"], posts[1:])
    write_mended(copy, "replies", keys["replies"], replies.with_columns(never_said))
    added = follows[:1].with_columns(pl.col("uri") + "z")
    write_mended(copy, "follows", keys["follows"], pl.concat([follows, added]))
    accounting.build_accounts(copy)
    accounts = rows_of(copy, study_files.ACCOUNTS_KEY)
    metadata = pl.read_parquet_metadata(copy.root / study_files.ACCOUNTS_KEY)
    more = accounts.with_columns(pl.col("records_rejected") + 1)
    storage.write(study_files.ACCOUNTS_KEY, more, metadata={"made_of": metadata["made_of"]})
    [derived] = storage.keys("derived")
    storage.write(derived, rows_of(copy, derived)[:-1])
    write_manifest(copy)
    assert wrong_files(copy) == []
    done = verify(copy)
    assert not done.holds
    found = done.problems.filter(problem=FileProblem.ROWS_DIFFER.value).sort("file")
    assert found.select("file", "detail").rows() == sorted(
        [
            (keys["posts"], f"1 rows are dropped, 0 added, and {posts.height - 1} there for {posts.height}"),
            (
                keys["replies"],
                f"0 rows are dropped, 0 added, and {replies.height} there for {replies.height}",
            ),
            (
                keys["follows"],
                f"0 rows are dropped, 1 added, and {follows.height + 1} there for {follows.height}",
            ),
        ]
    )
    others = done.problems.filter(problem=FileProblem.DERIVED_DIFFERS.value)["file"].to_list()
    assert {study_files.ACCOUNTS_KEY, derived} <= set(others)
    assert done.counts["proven"] > 0


def test_converted_records_that_are_changed_with_everything_mended_are_found(copy: Study) -> None:
    storage = StudyStorage(copy.root)
    [key] = [key for key in storage.keys("records") if "/posts/" in key]
    rows = rows_of(copy, key)
    storage.write(key, rows.with_columns(text=pl.lit("never said")))
    [counts] = [
        other for other in storage.keys("records/" + key.split("/")[1] + "/counts") if key[-27:-10] in other
    ]
    told = pl.read_parquet_metadata(storage.path(counts))
    files = json.loads(told["files"]) | {key: storage.size(key)}
    storage.write(
        counts, rows_of(copy, counts), metadata={"settings": told["settings"], "files": json.dumps(files)}
    )
    pipeline.build_tables(copy, again=True)
    done = verify(copy)
    assert not done.holds
    assert problems(done) == {FileProblem.RECORDS_DIFFER.value}
    assert key in done.problems["file"].to_list()


def test_a_study_that_was_built_of_other_packs_is_found_by_its_trees(copy: Study) -> None:
    """Somebody takes a record out of a pack, and has this very program build everything anew."""
    storage = StudyStorage(copy.root)
    [*_, key] = max(pack_keys(storage), key=lambda found: storage.size(found[2]))
    pack = Forgery(storage, key)
    victim = pack.blocks.pop(0)["did"]
    pack.of(victim)["records"] -= 1
    pack.write()
    pipeline.convert_records(copy, again=True)
    pipeline.build_tables(copy, again=True)
    assert wrong_files(copy) == []
    done = verify(copy)
    assert not done.holds
    verdicts = done.verdicts.filter(
        pl.col("verdict").is_in([word.value for word in SnapshotVerdict if not word.holds])
    )
    assert verdicts.select("did", "verdict").rows() == [(victim, "tree_differs")]
    assert problems(done) == set()


def drop_a_row(pack: Forgery) -> None:
    pack.rows.remove(next(row for row in pack.rows if row["outcome"] == "complete" and row["records"]))


def double_a_row(pack: Forgery) -> None:
    pack.rows.append(next(row for row in pack.rows if row["outcome"] == "complete" and row["records"]))


@pytest.mark.parametrize("change", [drop_a_row, double_a_row])
def test_a_pack_that_tells_of_other_accounts_than_its_blocks_fails_and_ends_nothing(
    change: Change, copy: Study
) -> None:
    storage = StudyStorage(copy.root)
    [*_, key] = max(pack_keys(storage), key=lambda found: storage.size(found[2]))
    pack = Forgery(storage, key)
    change(pack)
    pack.write()
    write_manifest(copy)
    assert wrong_files(copy) == []
    done = verify(copy)
    assert not done.holds
    assert Told.from_bytes((copy.root / CERTIFICATE_KEY).read_bytes()).content["holds"] is False
    if change is drop_a_row:
        assert key in done.problems.filter(problem=FileProblem.STRAY_RECORDS.value)["file"].to_list()
    else:
        assert done.verdicts.filter(verdict=SnapshotVerdict.ROWS_DIFFER.value).height == 2


def test_what_a_conversion_raises_is_what_is_found(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    again = sys.modules["backfill_dagster.verification.guard"]
    for error in (ReconciliationError("counts"), RecursionError("deep"), MemoryError(), AssertionError()):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(again, "check_conversion", fail)
        done = verify(study)
        assert not done.holds
        assert problems(done) == {FileProblem.UNREADABLE.value}
        assert done.problems["detail"].str.starts_with(type(error).__name__).all()


def end_worker(root: Path, piece: object) -> None:
    os._exit(9)


def test_a_worker_that_is_ended_costs_its_step(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["backfill_dagster.verification.verify"]
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    monkeypatch.setattr(module, "proven_pack", end_worker)
    done = verify(study)
    assert not done.holds
    assert {"accounts", "records"} <= set(done.certificate.content["not_looked_at"])
    assert FileProblem.UNREADABLE.value in problems(done)


def forge_list(copy: Study, entries: pl.DataFrame, **told: str) -> str:
    storage = StudyStorage(copy.root)
    [key] = storage.keys(FILTERS_FOLDER)
    metadata = {**pl.read_parquet_metadata(storage.path(key)), **told}
    metadata.pop("ARROW:schema")
    storage.write(key, entries, metadata=metadata)
    return key


def test_a_filter_list_that_does_not_have_its_digest_is_found(copy: Study) -> None:
    [key] = StudyStorage(copy.root).keys(FILTERS_FOLDER)
    forge_list(copy, StudyStorage(copy.root).read(key)[:3])
    pipeline.convert_records(copy, again=True)
    pipeline.build_tables(copy, again=True)
    assert wrong_files(copy) == []
    done = verify(copy)
    assert not done.holds
    assert problems(done) == {FileProblem.LIST_DIFFERS.value}
    assert "its entries do not have its digest" in done.problems.filter(file=key)["detail"].to_list()


def test_a_list_of_the_yaml_that_is_another_with_everything_mended_is_found(copy: Study) -> None:
    storage = StudyStorage(copy.root)
    [key] = storage.keys(FILTERS_FOLDER)
    fewer = storage.read(key)[:3]
    forge_list(copy, fewer, digest=digest_of(fewer), given="3")
    pipeline.convert_records(copy, again=True)
    pipeline.build_tables(copy, again=True)
    done = verify(copy)
    assert not done.holds
    assert done.problems.rows() == [
        (FileProblem.LIST_DIFFERS.value, key, "it is not the list that stands in the YAML")
    ]


def test_a_filter_list_that_is_said_to_be_purged_or_is_of_others_is_found(copy: Study) -> None:
    storage = StudyStorage(copy.root)
    [key] = storage.keys(FILTERS_FOLDER)
    entries = storage.read(key)
    forge_list(copy, entries[:-1], rejected=json.dumps({"purged": 1}))
    [purged, *_] = [one.detail for one in check_lists(copy)]
    assert purged == "1 entries are said to be purged, and the study has purged nothing"
    forge_list(copy, entries.with_columns(did=pl.lit(entries["did"][0])), rejected="{}")
    details = [one.detail for one in check_lists(copy)]
    assert "it has entries that can keep no record, or that are told as of another account" in details
    forge_list(copy, entries, given=str(entries.height - 1))
    details = [one.detail for one in check_lists(copy)]
    assert any("fewer than it tells of" in str(detail) for detail in details)
    storage.path(key).write_bytes(b"none")
    assert [one.problem for one in check_lists(copy)] == [FileProblem.LIST_DIFFERS]


def test_files_that_nothing_names_are_found_though_the_manifest_has_them(copy: Study) -> None:
    storage = StudyStorage(copy.root)
    [_, name, key] = pack_keys(storage)[0]
    [counts] = [key for key in storage.keys("records") if f"/counts/{name}" in key]
    other = "0" * 20
    strays = [
        f"{key.removesuffix('.parquet')}.blocks-9.parquet",
        f"{key.rpartition('/')[0]}/{other}.blocks-0.parquet",
        "repos/notes.txt",
        counts.replace(name, other),
        counts.replace("counts", "posts") + ".bin",
    ]
    for stray in strays:
        storage.path(stray).parent.mkdir(parents=True, exist_ok=True)
        storage.path(stray).write_bytes(storage.path(counts).read_bytes())
    write_manifest(copy)
    assert wrong_files(copy) == []
    done = verify(copy)
    assert not done.holds
    assert done.problems.filter(problem=FileProblem.ADDED.value)["file"].to_list() == sorted(strays)


def test_a_file_whose_name_is_no_text_is_told_of(copy: Study) -> None:
    names = [b"proof/\xff.bin", b"tables/\xff.bin", b"manifest/\xff.bin", b"repos/\xff.bin"]
    for name in names:
        Path(os.fsdecode(os.fsencode(copy.root) + b"/" + name)).write_bytes(b"x")
    expected = {name.decode("utf-8", "backslashreplace") for name in names}
    done = verify(copy)
    assert not done.holds
    assert set(done.problems.filter(problem=FileProblem.ADDED.value)["file"]) == expected
    assert done.certificate.content["not_looked_at"] == []
    write_manifest(copy)
    assert not verify(copy).holds


def test_a_document_that_is_not_what_was_received_is_found(copy: Study) -> None:
    storage = StudyStorage(copy.root)
    key = storage.keys(DOCUMENTS_FOLDER)[0]
    rows = storage.read(key)
    storage.write(key, rows.with_columns(body=pl.lit(b"{}")))
    write_manifest(copy)
    done = verify(copy)
    assert not done.holds
    assert FileProblem.EVIDENCE.value in problems(done)


def test_a_frozen_build_is_verified_with_the_study(copy: Study) -> None:
    frozen = freeze(copy.model_copy(update={"snapshot": "v1"})).build
    assert CERTIFICATE_KEY in frozen.files["key"]
    path = copy.root / "frozen/v1" / POSTS
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    done = verify(copy)
    assert done.problems.select("problem", "file").rows() == [("frozen_differs", f"frozen/v1/{POSTS}")]
    assert not done.holds
    assert done.certificate.content["not_looked_at"] == []
    assert done.certificate.content["frozen"]["v1"]["manifest_sha256"] == frozen.told.digest


# --- what is not wrong, and what is to be done first ---


def test_without_a_manifest_nothing_tells_what_files_there_should_be(copy: Study) -> None:
    (copy.root / MANIFEST_KEY).unlink()
    done = verify(copy)
    assert not done.holds
    assert problems(done) == {FileProblem.NO_MANIFEST.value}
    assert done.counts["proven"] > 0


def test_other_settings_than_those_of_the_build_are_told(copy: Study) -> None:
    done = verify(copy.model_copy(update={"record_types": ("app.bsky.feed.post",), "filters": {}}))
    assert not done.holds
    assert {FileProblem.NOT_UP_TO_DATE.value, FileProblem.ROWS_DIFFER.value} <= problems(done)
    assert done.counts["proven"] > 0


def test_a_copy_elsewhere_and_with_another_pace_holds_as_well(study: Study, copy: Study) -> None:
    faster = copy.processing.model_copy(update={"requests_per_second": 7, "workers": 2})
    done = verify(copy.model_copy(update={"processing": faster}))
    assert done.problems.rows() == []
    assert done.certificate.content == verify(study).certificate.content


def test_a_stage_that_was_run_since_is_told(copy: Study) -> None:
    storage = StudyStorage(copy.root)
    storage.write(study_files.SOURCE_KEY, storage.read(study_files.SOURCE_KEY)[:-1])
    done = verify(copy)
    assert not done.holds
    assert {FileProblem.CHANGED.value} <= problems(done)


# --- purge ---


def test_a_purge_reaches_all_of_it_and_what_is_left_holds(copy: Study) -> None:
    snapshots = rows_of(copy, SNAPSHOTS_KEY).filter(pl.col("records") > 2)["did"]
    did = snapshots[0]
    assert {path.partition("/")[0] for path in files_with(copy.root, did)} >= {
        "documents",
        "manifest",
        "proof",
    }
    purging.purge(copy, dids=[did])
    assert files_with(copy.root, did) == []
    assert not (copy.root / VERDICTS_KEY).exists()
    done = verify(copy)
    assert done.problems.rows() == []
    assert done.holds
    assert did not in done.verdicts["did"].to_list()
    assert set(done.counts) <= {"proven", "proven_masked", "nothing_stored"}


# --- many ---


def test_some_random_mutations_are_found(study: Study, tmp_path: Path) -> None:
    tally = mutations.run(study, tmp_path, seed=7, numbers=iter(range(1, 15)))
    assert tally.made.total() == 14
    assert tally.missed == []
    assert wrong_files(study) == []
