"""A build is frozen as it is, whole or not at all, and stays so whatever is built later."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import backfill_dagster
from backfill_dagster.errors import StorageError
from backfill_dagster.frozen.freeze import freeze, is_frozen, list_frozen
from backfill_dagster.frozen.places import LABEL_PATTERN, frozen_folder, unfinished_key
from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, FILES_KEY, MANIFEST_KEY, SNAPSHOTS_KEY
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stores.local import LocalStore
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster_tests.frozen.builds import (
    ALICE,
    LIKES,
    POSTS,
    UNDATED_POSTS,
    copy_of,
    frozen_bytes,
    frozen_rows,
    leave_build,
    leave_manifest,
    row,
    study_on,
    write_rows,
)

LABEL = "v1"
FROZEN = {POSTS, LIKES, UNDATED_POSTS, "accounts.parquet", "attrition.parquet", "methods.md"}
OWN = {MANIFEST_KEY, FILES_KEY, SNAPSHOTS_KEY}


def relabelled(study: Any, label: str | None) -> Any:
    return study.model_copy(update={"snapshot": label})


def test_what_is_frozen_stays_while_the_study_goes_on(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    storage = StudyStorage(study.location)
    told = leave_build(study)
    assert not is_frozen(study)
    first = freeze(study)
    assert (first.is_new, first.has_moved_on, is_frozen(study)) == (True, False, True)
    assert first.build.made_of == told.digest
    assert first.build.tables == ["likes", "posts"]
    assert (first.build.told.content["label"], first.build.purges) == (LABEL, [])
    before = frozen_bytes(study, LABEL)
    assert set(before) == FROZEN | OWN
    assert {key: before[key] for key in FROZEN} == dict(first.build.files.select("key", "sha256").iter_rows())

    leave_build(study, text="second")
    storage.remove(LIKES)
    write_rows(storage, POSTS.replace("10", "11"), [row("posts", ALICE, "3", text="new")])
    leave_manifest(study)
    again = freeze(study)
    assert (again.is_new, again.has_moved_on) == (False, True)
    assert again.build.told == first.build.told
    assert frozen_bytes(study, LABEL) == before
    assert frozen_rows(study, POSTS)["text"].unique().to_list() == ["first"]
    assert storage.read(POSTS)["text"].unique().to_list() == ["second"]

    second = freeze(relabelled(study, "v2"))
    assert second.is_new
    assert second.build.tables == ["posts"]
    assert frozen_rows(study, POSTS, "v2")["text"].unique().to_list() == ["second"]
    assert frozen_bytes(study, LABEL) == before
    assert {build.label for build in list_frozen(study)} == {LABEL, "v2"}
    assert check_frozen(storage, 1)[1] == []


def test_on_a_disk_a_frozen_file_takes_no_room_until_the_study_has_another(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    leave_build(study)
    freeze(study)
    live, frozen = study.root / POSTS, study.root / frozen_folder(LABEL) / POSTS
    assert live.samefile(frozen)
    leave_build(study, text="second")
    assert not live.samefile(frozen)


def test_of_a_file_that_is_a_link_to_elsewhere_the_file_itself_is_frozen(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    leave_build(study)
    accounts, elsewhere = study.root / "accounts.parquet", tmp_path / "elsewhere.parquet"
    accounts.rename(elsewhere)
    accounts.symlink_to(elsewhere)
    freeze(study)
    before = frozen_bytes(study, LABEL)
    elsewhere.unlink()
    elsewhere.write_bytes(b"another")
    assert frozen_bytes(study, LABEL) == before
    assert check_frozen(StudyStorage(study.location), 1)[1] == []


def test_nothing_that_is_frozen_is_ever_written_in_place() -> None:
    package = Path(backfill_dagster.__file__).parent
    changing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"""pwrite|ftruncate|O_RDWR|O_APPEND|open\([^)]*["'](r\+|r?b?\+|a)""", path.read_text())
    }
    # Leases, locks, logs, what runs note of themselves, what lies in scratch, and the made-up network.
    known = {
        *("network/leases.py", "stores/run_lock.py", "stores/living_note.py", "purge/logs.py"),
        *("monitoring/structured_log.py", "repos/listings.py", "repos/single_records.py", "storage.py"),
    }
    assert "purge/logs.py" in changing
    assert {name for name in changing - known if not name.startswith("sandbox/")} == set()


def test_the_certificate_is_frozen_if_it_is_of_this_build(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    storage = StudyStorage(study.location)
    told = leave_build(study)
    write_told(storage, CERTIFICATE_KEY, Told({"holds": True, "manifest_sha256": told.digest}, {}))
    assert CERTIFICATE_KEY in freeze(study).build.files["key"]
    leave_build(study, text="second")
    build = freeze(relabelled(study, "v2")).build
    assert CERTIFICATE_KEY not in build.files["key"]
    assert CERTIFICATE_KEY not in frozen_bytes(study, "v2")
    assert check_frozen(storage, 1)[1] == []


def test_the_label_is_no_part_of_what_the_manifest_tells(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    assert leave_build(study).digest == leave_manifest(relabelled(study, None)).digest


def test_what_the_manifest_does_not_tell_of_is_not_frozen(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    storage = StudyStorage(study.location)
    with pytest.raises(StorageError, match="materialize `manifest`, then `frozen`"):
        freeze(study)
    leave_build(study)
    write_rows(storage, POSTS, [row("posts", ALICE, "9")])
    with pytest.raises(StorageError, match=r"1 files are not those .*part-00000\.parquet; materialize"):
        freeze(study)
    assert not is_frozen(study)
    leave_manifest(study)
    assert freeze(study).is_new


def test_a_frozen_build_that_has_lost_its_manifest_is_not_frozen_anew(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    storage = StudyStorage(study.location)
    leave_build(study)
    freeze(study)
    before = frozen_bytes(study, LABEL)
    storage.remove(f"{frozen_folder(LABEL)}/{MANIFEST_KEY}")
    with pytest.raises(StorageError, match="take its manifest from a copy, or delete"):
        freeze(study)
    del before[MANIFEST_KEY]
    assert frozen_bytes(study, LABEL) == before


class Crash(BaseException):
    """What nothing catches."""


def crash_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Have the change of this number to what is stored not happen; returns what tells whether it came to that."""
    passed = 0

    def crashing(method: Callable[..., None]) -> Callable[..., None]:
        def change(*arguments: Any) -> None:
            nonlocal passed
            passed += 1
            if passed >= number:
                raise Crash
            method(*arguments)

        return change

    for name in ("put", "duplicate", "remove"):
        monkeypatch.setattr(LocalStore, name, crashing(getattr(LocalStore, name)))
    return lambda: passed >= number


def test_whenever_it_is_interrupted_the_next_one_freezes_all(tmp_path: Path) -> None:
    whole: dict[str, str] | None = None
    begin = study_on("disk", tmp_path)
    leave_build(begin)
    for number in range(1, 40):
        study = copy_of(begin, tmp_path / str(number))
        storage = StudyStorage(study.location)
        with pytest.MonkeyPatch.context() as monkeypatch:
            crashed = crash_at(monkeypatch, number)
            try:
                freeze(study)
            except Crash:
                found = check_frozen(storage, 1)[1]
                is_whole = is_frozen(study)
        if not crashed():
            break
        # Either nothing, or begun and marked so, or a frozen build of which only the mark is left.
        marked = storage.exists(unfinished_key(LABEL))
        assert marked or not frozen_bytes(study, LABEL)
        assert {one.file for one in found} <= {unfinished_key(LABEL), f"frozen/{LABEL}/{MANIFEST_KEY}"}
        done = freeze(study)
        assert done.is_new is not is_whole
        assert check_frozen(storage, 1)[1] == []
        assert not storage.exists(unfinished_key(LABEL))
        after = frozen_bytes(study, LABEL)
        del after[MANIFEST_KEY]
        whole = whole or after
        assert after == whole
    assert number > len(FROZEN) + 4


def test_what_was_begun_under_another_label_is_swept(tmp_path: Path) -> None:
    study = study_on("disk", tmp_path)
    storage = StudyStorage(study.location)
    leave_build(study)
    storage.write_bytes(unfinished_key("other"), b"")
    storage.write(f"{frozen_folder('other')}/{POSTS}", pl.DataFrame({"did": [ALICE]}))
    freeze(study)
    assert storage.folders("frozen") == [LABEL]
    assert not storage.exists(unfinished_key("other"))


@pytest.mark.parametrize(
    "label", ["", ".", "..", "../x", "a/b", "V1", "-a", "_a", "v1.unfinished", "a" * 65, "a\n"]
)
def test_what_is_no_label_is_refused(label: str, tmp_path: Path) -> None:
    assert LABEL_PATTERN.fullmatch(label) is None
    with pytest.raises(ValueError, match="must be a label"):
        study_on("disk", tmp_path, label)
