"""Whatever is done to a frozen build is found, and named by its path."""

from pathlib import Path

import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.frozen.freeze import freeze
from backfill_dagster.frozen.places import unfinished_key
from backfill_dagster.manifest.keys import FILES_KEY, MANIFEST_KEY, SNAPSHOTS_KEY
from backfill_dagster.purge.tombstones import bury
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster.verification.verdicts import FileProblem
from backfill_dagster_tests.frozen.builds import ALICE, OCTOBER, POSTS, leave_build, study_on

FOLDER = "frozen/v1"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = study_on("disk", tmp_path)
    leave_build(study)
    freeze(study)
    return study


def wrong(study: Study) -> dict[str | None, str | None]:
    _, found = check_frozen(StudyStorage(study.location), 2)
    assert {one.problem for one in found} <= {FileProblem.FROZEN_DIFFERS}
    return {one.file: one.detail for one in found}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    # Of the study's own file it is one name of two.
    path.unlink()
    path.write_bytes(data)


def test_a_frozen_build_holds_and_is_told_of(study: Study) -> None:
    told, found = check_frozen(StudyStorage(study.location), 2)
    assert found == []
    assert told["v1"]["files"] == 6
    assert set(told) == {"v1"}


@pytest.mark.parametrize("key", [POSTS, "accounts.parquet", "methods.md"])
def test_a_file_that_is_changed_or_gone_is_named(study: Study, key: str) -> None:
    flip(study.root / FOLDER / key)
    assert "other bytes" in str(wrong(study)[f"{FOLDER}/{key}"])
    assert len(wrong(study)) == 1
    (study.root / FOLDER / key).unlink()
    assert wrong(study) == {f"{FOLDER}/{key}": "it is missing"}


@pytest.mark.parametrize("key", ["notes.txt", POSTS.replace("00000", "00001"), "manifest/files-1.parquet"])
def test_a_file_that_is_too_many_is_named(study: Study, key: str) -> None:
    (study.root / FOLDER / key).write_bytes(b"x")
    assert wrong(study) == {f"{FOLDER}/{key}": "its manifest does not have it"}


@pytest.mark.parametrize("key", [MANIFEST_KEY, FILES_KEY, SNAPSHOTS_KEY])
def test_a_manifest_or_a_list_of_it_that_is_not_what_was_written_is_named(study: Study, key: str) -> None:
    for change in (flip, Path.unlink):
        change(study.root / FOLDER / key)
        assert list(wrong(study)) == [f"{FOLDER}/{MANIFEST_KEY}"]


def test_a_build_that_lies_under_the_label_of_another_is_named(study: Study) -> None:
    (study.root / FOLDER).rename(study.root / "frozen/v2")
    told = wrong(study)
    assert told == {f"frozen/v2/{MANIFEST_KEY}": "its manifest is of what was frozen as 'v1'"}


def test_what_belongs_to_no_frozen_build_is_named(study: Study) -> None:
    storage = StudyStorage(study.location)
    storage.write_bytes("frozen/readme.txt", b"x")
    storage.write_bytes(unfinished_key("v2"), b"")
    storage.write_bytes("frozen/v2/tables/x.parquet", b"x")
    assert set(wrong(study)) == {"frozen/readme.txt", unfinished_key("v2"), f"frozen/v2/{MANIFEST_KEY}"}


def test_a_folder_that_is_deleted_whole_is_dropped(study: Study) -> None:
    storage = StudyStorage(study.location)
    for key in storage.keys(FOLDER, "*"):
        storage.remove(key)
    storage.remove_empty_folders("frozen")
    assert check_frozen(storage, 1) == ({}, [])


def test_a_copy_from_before_a_purge_is_found(study: Study) -> None:
    bury(StudyStorage(study.location), [ALICE], [], OCTOBER)
    assert wrong(study) == {FOLDER: "it holds accounts that the study has purged"}
