"""A purge reaches frozen builds: what is left is what the live tables hold, and their manifests say so."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import purging
from backfill_dagster.config.study import Study
from backfill_dagster.frozen.freeze import freeze, list_frozen
from backfill_dagster.frozen.manifest import snapshot_lots
from backfill_dagster.frozen.places import frozen_folder
from backfill_dagster.frozen.purge import FrozenPurge, purge_frozen
from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, MANIFEST_FOLDER, MANIFEST_KEY, SNAPSHOTS_KEY
from backfill_dagster.purge.tombstones import Tombstones, bury
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import DIRECTORY_HISTORY_KEY, SOURCE_KEY
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster_tests.frozen.builds import (
    ALICE,
    BOB,
    CAROL,
    LIKES,
    OCTOBER,
    POSTS,
    UNDATED_POSTS,
    copy_of,
    frozen_bytes,
    frozen_rows,
    leave_build,
    study_on,
)
from backfill_dagster_tests.frozen.test_freeze import Crash, crash_at
from backfill_dagster_tests.purge.stored_bytes import files_with

POST = "app.bsky.feed.post"


def frozen_study(place: str, folder: Path) -> Study:
    """Return a study with a build that is frozen as v1, with a certificate."""
    study = study_on(place, folder)
    told = leave_build(study)
    certificate = Told({"holds": True, "manifest_sha256": told.digest}, {})
    write_told(StudyStorage(study.location), CERTIFICATE_KEY, certificate)
    freeze(study)
    return study


def purge(study: Study, dids: list[str], records: list[tuple[str, str, str]] | None = None) -> int:
    done = attempt(study, dids, records)
    assert done.unreadable == ()
    return done.rows


def attempt(study: Study, dids: list[str], records: list[tuple[str, str, str]] | None = None) -> FrozenPurge:
    storage = StudyStorage(study.location)
    return purge_frozen(study, bury(storage, dids, records or [], datetime.now(UTC)))


def test_an_account_goes_and_the_manifest_says_so(tmp_path: Path) -> None:
    study = frozen_study("disk", tmp_path)
    storage = StudyStorage(study.location)
    [before] = list_frozen(study)
    bytes_before = frozen_bytes(study, "v1")
    assert purge(study, [ALICE]) == 1
    assert frozen_rows(study, POSTS)["did"].to_list() == [BOB, CAROL]
    assert frozen_rows(study, "accounts.parquet")["did"].to_list() == [BOB, CAROL]
    masked = f"at://did:plc:{'x' * 24}/{POST}/1"
    assert frozen_rows(study, LIKES)["subject_uri"].unique().to_list() == [masked]
    # Of Bob's two likes nobody can tell any more whether they are of the same post.
    assert frozen_rows(study, LIKES)["first_for_subject"].to_list() == [None, None, True]

    [build] = list_frozen(study)
    [told] = build.purges
    assert (told["accounts"], told["rows"], told["files_removed"]) == (1, 1, [CERTIFICATE_KEY])
    assert told["manifest_sha256_before"] == before.told.digest
    went = {each["file"]: each["rows_removed"] for each in told["files"]}
    assert went == {POSTS: 1, LIKES: 0, "accounts.parquet": 1}
    digests = dict(build.files.select("key", "sha256").iter_rows())
    assert {each["file"]: each["sha256"] for each in told["files"]} == {key: digests[key] for key in went}
    [snapshots] = snapshot_lots(StudyStorage(study.root), build.snapshots_key)
    assert snapshots["did"].to_list() == [BOB, CAROL]
    assert (build.frozen_at, build.made_of) == (before.frozen_at, before.made_of)
    after = frozen_bytes(study, "v1")
    assert after[UNDATED_POSTS] == bytes_before[UNDATED_POSTS]
    assert SNAPSHOTS_KEY not in after
    assert CERTIFICATE_KEY not in after
    assert check_frozen(storage, 1)[1] == []
    assert files_with(study.root / "frozen", ALICE) == []
    # Nor the digest of a file that held her, by which a guess at what is gone could be tried.
    for key in (*went, CERTIFICATE_KEY, SNAPSHOTS_KEY, MANIFEST_KEY):
        assert files_with(study.root / "frozen", bytes_before[key]) == [], key

    # A purge of somebody who is not in it leaves it as it is; another one is told after this one.
    purge(study, ["did:plc:" + "e" * 24])
    assert frozen_bytes(study, "v1") == after
    purge(study, [CAROL])
    [build] = list_frozen(study)
    assert [each["accounts"] for each in build.purges] == [1, 1]
    assert check_frozen(storage, 1)[1] == []


@pytest.mark.usefixtures("s3")
def test_in_s3_a_build_is_frozen_and_purged_as_on_a_disk(tmp_path: Path) -> None:
    study, twin = frozen_study("s3", tmp_path), frozen_study("disk", tmp_path)
    storage = StudyStorage(study.location)
    before = frozen_bytes(study, "v1")
    storage.write(POSTS, frozen_rows(study, POSTS).clear())
    assert (freeze(study).is_new, frozen_bytes(study, "v1")) == (False, before)
    assert purge(study, [ALICE]) == purge(twin, [ALICE]) == 1
    for key in (POSTS, LIKES, UNDATED_POSTS, "accounts.parquet"):
        assert frozen_rows(study, key).equals(frozen_rows(twin, key))
    assert check_frozen(storage, 2)[1] == []
    storage.remove(f"{frozen_folder('v1')}/{POSTS}")
    assert [one.file for one in check_frozen(storage, 2)[1]] == [f"{frozen_folder('v1')}/{POSTS}"]


def test_a_record_goes_and_its_account_is_counted_again(tmp_path: Path) -> None:
    study = frozen_study("disk", tmp_path)
    assert purge(study, [], [(BOB, "app.bsky.feed.like", "1"), (BOB, POST, "2")]) == 2
    assert frozen_rows(study, UNDATED_POSTS).is_empty()
    assert frozen_rows(study, LIKES).select("did", "rkey", "first_for_subject").rows() == [
        (BOB, "2", True),
        (CAROL, "1", True),
    ]
    bob = frozen_rows(study, "accounts.parquet").row(by_predicate=pl.col("did") == BOB, named=True)
    assert (bob["records_kept"], bob["posts"], bob["likes"], bob["undated"]) == (2, 1, 1, 0)
    assert {"reason": "purged", "records": 2} in bob["filtered"]
    [told] = list_frozen(study)[0].purges
    assert (told["accounts"], told["rows"]) == (0, 2)


def test_whenever_it_is_interrupted_the_next_one_finishes_it(tmp_path: Path) -> None:
    begin = frozen_study("disk", tmp_path)
    for number in range(1, 40):
        study = copy_of(begin, tmp_path / str(number))
        storage = StudyStorage(study.location)
        tombstones = bury(storage, [ALICE], [(BOB, POST, "2")], OCTOBER)
        with pytest.MonkeyPatch.context() as monkeypatch:
            crashed = crash_at(monkeypatch, number)
            with suppress(Crash):
                purge_frozen(study, tombstones)
        purge_frozen(study, tombstones)
        [build] = list_frozen(study)
        [told] = build.purges
        assert (told["accounts"], told["rows"]) == (1, 2)
        assert [each["file"] for each in told["files"]] == ["accounts.parquet", LIKES, POSTS, UNDATED_POSTS]
        assert files_with(study.root / "frozen", ALICE) == []
        assert check_frozen(storage, 1)[1] == []
        if not crashed():
            break
    assert number > 7


def test_a_purge_does_not_hide_what_somebody_has_changed(tmp_path: Path) -> None:
    study = frozen_study("disk", tmp_path)
    storage = StudyStorage(study.location)
    key = f"{frozen_folder('v1')}/{POSTS}"
    storage.write(key, storage.read(key).with_columns(text=pl.lit("forged")))
    assert [one.file for one in check_frozen(storage, 1)[1]] == [key]
    purge(study, [ALICE])
    assert files_with(study.root / "frozen", ALICE) == []
    assert [one.file for one in check_frozen(storage, 1)[1]] == [key]


def test_without_its_manifest_it_is_purged_all_the_same(tmp_path: Path) -> None:
    study = frozen_study("disk", tmp_path)
    storage = StudyStorage(study.location)
    storage.remove(f"{frozen_folder('v1')}/{MANIFEST_KEY}")
    assert purge(study, [ALICE]) == 1
    assert files_with(study.root / "frozen", ALICE) == []
    assert frozen_rows(study, LIKES)["first_for_subject"].to_list() == [None, None, True]
    assert [one.file for one in check_frozen(storage, 1)[1]] == [f"{frozen_folder('v1')}/{MANIFEST_KEY}"]


@pytest.mark.parametrize("mended", ["restored", "deleted"])
def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_purged(tmp_path: Path, mended: str) -> None:
    study = frozen_study("disk", tmp_path)
    storage, key = StudyStorage(study.location), f"{frozen_folder('v1')}/{POSTS}"
    whole = storage.read_bytes(key)
    storage.write_bytes(key, b"no table")
    done = attempt(study, [ALICE])
    [told] = done.unreadable
    assert storage.where(key) in told
    assert "take it from a copy, or delete it" in told
    assert storage.read_bytes(key) == b"no table"
    for folder in ("tables/likes", "undated", MANIFEST_FOLDER):
        assert files_with(study.root / frozen_folder("v1") / folder, ALICE) == []
    assert frozen_rows(study, "accounts.parquet")["did"].to_list() == [BOB, CAROL]
    assert key in {one.file for one in check_frozen(storage, 1)[1]}
    # To look again changes nothing.
    before = frozen_bytes(study, "v1")
    assert attempt(study, []).unreadable == done.unreadable
    assert frozen_bytes(study, "v1") == before

    storage.remove(key)
    if mended == "restored":
        storage.write_bytes(key, whole)
    assert purge(study, []) == (1 if mended == "restored" else 0)
    assert files_with(study.root / "frozen", ALICE) == []
    assert frozen_rows(study, LIKES)["first_for_subject"].to_list() == [None, None, True]
    missing = [] if mended == "restored" else [key]
    assert [one.file for one in check_frozen(storage, 1)[1]] == missing
    assert sum(each["accounts"] for each in list_frozen(study)[0].purges) == 1


def test_a_frozen_file_that_cannot_be_read_holds_up_nothing_of_the_study(tmp_path: Path) -> None:
    study = frozen_study("disk", tmp_path)
    storage, key = StudyStorage(study.location), f"{frozen_folder('v1')}/{POSTS}"
    whole = storage.read_bytes(key)
    storage.write_bytes(key, b"no table")
    sources = (SOURCE_KEY, DIRECTORY_HISTORY_KEY)
    for name in sources:
        storage.write(name, pl.DataFrame({"did": [ALICE, BOB], "handle": ["a.test", "b.test"]}))
    storage.remove(MANIFEST_KEY)
    report = purging.purge(study, dids=[ALICE])
    assert len(report.not_purged) == 1
    assert [storage.read(name)["did"].to_list() for name in sources] == [[BOB], [BOB]]
    left = Tombstones.load(storage)
    # Of its own files nothing has to wait; the purge is not done all the same.
    assert (left.unfinished, left.left_in_frozen) == (0, 1)
    assert purging.is_purge_unfinished(study)
    assert purging.purge(study).not_purged == report.not_purged
    # Another purge is one of everything, and so is one that it is interrupted in.
    assert Tombstones.load(storage).left_in_frozen == 1
    assert bury(storage, [BOB], [], OCTOBER).unfinished == 2

    assert len(purging.purge(study).not_purged) == 1
    storage.write_bytes(key, whole)
    done = purging.purge(study)
    assert (done.not_purged, done.removed) == ((), {"frozen": 2})
    assert not purging.is_purge_unfinished(study)
    assert files_with(study.root / "frozen", ALICE) == files_with(study.root / "frozen", BOB) == []
    assert storage.read("purged.parquet")["removed_at"].null_count() == 0
