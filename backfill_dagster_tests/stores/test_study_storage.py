"""What a study's storage promises, wherever the files are kept."""

import errno
import hashlib
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster.errors import StorageError
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.stores.location import S3Folder
from backfill_dagster.stores.store import StoredObject
from backfill_dagster_tests.dids.sources.s3_server import BUCKET

SCHEMA = pl.Schema({"a": pl.Int64(), "b": pl.String()})


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StudyStorage:
    if request.param == "disk":
        return StudyStorage(tmp_path / "study")
    request.getfixturevalue("s3")
    return StudyStorage(S3Folder(BUCKET, uuid.uuid4().hex) / "study")


def test_what_is_written_is_there(storage: StudyStorage) -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    stored = storage.write("x/y.parquet", frame, metadata={"more": "told"})
    assert storage.exists("x/y.parquet")
    assert storage.read("x/y.parquet").equals(frame)
    assert storage.schema("x/y.parquet") == SCHEMA
    assert storage.metadata("x/y.parquet")["more"] == "told"
    assert storage.metadata("x/y.parquet")["schema_version"] == "1"
    assert (stored.rows, stored.bytes) == (2, storage.size("x/y.parquet"))
    assert stored.sha256 == storage.sha256("x/y.parquet")
    with storage.local("x/y.parquet") as path:
        content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == stored.sha256


def test_equal_content_gives_equal_bytes_and_takes_the_place_of_what_was_there(storage: StudyStorage) -> None:
    first = storage.write("x.parquet", pl.DataFrame({"a": [1]}))
    before = storage.version("x.parquet")
    storage.write("x.parquet", pl.DataFrame({"a": [2]}))
    assert storage.read("x.parquet")["a"].to_list() == [2]
    assert storage.version("x.parquet") != before
    assert storage.write("y.parquet", pl.DataFrame({"a": [1]})).sha256 == first.sha256


def test_what_is_not_there_is_said(storage: StudyStorage) -> None:
    assert not storage.exists("x.parquet")
    assert storage.version("x.parquet") is None
    assert storage.keys("folder") == storage.folders("folder") == []
    assert storage.sizes("folder") == storage.sizes_of(["x.parquet", "y.parquet"]) == {}
    assert storage.metadata_of(["x.parquet", "y.parquet"]) == {}
    storage.remove("x.parquet")
    for ask in (storage.read, storage.size, storage.sha256, storage.metadata, storage.schema):
        with pytest.raises(StorageError, match=r"x\.parquet is missing; materialize the asset"):
            ask("x.parquet")
    with pytest.raises(StorageError, match=r"x\.parquet"):
        storage.collect([storage.scan(["x.parquet"], SCHEMA)], ["x.parquet"])


def test_what_is_no_table_is_named(storage: StudyStorage) -> None:
    stored = storage.write_bytes("x.parquet", b"no parquet")
    assert (stored.rows, stored.bytes) == (0, 10)
    for ask in (storage.read, storage.metadata, storage.schema):
        with pytest.raises(StorageError, match=r"x\.parquet cannot be read"):
            ask("x.parquet")
    assert storage.metadata_of(["x.parquet"]) == {}


@pytest.mark.parametrize("key", ["../x", "a/../../x", "", "/etc/passwd", "a//b", "."])
def test_no_key_leaves_the_study(storage: StudyStorage, key: str) -> None:
    for ask in (storage.where, storage.exists, storage.keys, storage.folders, storage.remove, storage.sha256):
        with pytest.raises(StorageError, match="not a path below"):
            ask(key)


def test_names_from_the_network_are_names(storage: StudyStorage) -> None:
    hosts = ["pds.test", "pds.test:8080", "..", "a/b", "%2e", "ö#?&=+ x", "*"]
    keys = {f"repos/{partition_folder(host)}/a.parquet": host for host in hosts}
    for number, key in enumerate(keys):
        storage.write(key, pl.DataFrame({"a": [number]}))
    assert storage.folders("repos") == sorted(map(partition_folder, hosts))
    assert storage.keys("repos") == sorted(keys)
    assert storage.sizes("repos") == storage.sizes_of(keys) == {key: storage.size(key) for key in keys}
    named = storage.scan_named(keys, {"a": pl.Int64()}, "host")
    for engine in ("in-memory", "streaming"):
        [rows] = storage.collect([named], keys, engine=engine)
        assert sorted(rows.rows()) == list(enumerate(hosts))


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(storage: StudyStorage) -> None:
    for key in ("a/x.parquet", "ab/y.parquet", "a/b/z.parquet", "a/page.html"):
        storage.write_bytes(key, b"x")
    assert storage.keys("a") == ["a/b/z.parquet", "a/x.parquet"]
    assert storage.keys("a", "*.html") == ["a/page.html"]
    assert storage.folders("a") == ["b"]


def test_more_files_than_one_page_of_a_listing_holds(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill_dagster.stores.s3._PAGE_SIZE", 3)
    storage = StudyStorage(S3Folder(BUCKET, uuid.uuid4().hex))
    names = [f"many/{number}.parquet" for number in range(8)]
    for name in names:
        s3.put_object(Bucket=BUCKET, Key=f"{storage.root.prefix}/{name}", Body=b"x")  # type: ignore[union-attr]
    assert storage.keys("many") == names


def test_scanning_fills_columns_that_older_files_lack(storage: StudyStorage) -> None:
    storage.write("old.parquet", pl.DataFrame({"a": [1]}))
    storage.write("new.parquet", pl.DataFrame({"a": [2], "b": ["x"]}))
    keys = ["old.parquet", "new.parquet"]
    assert storage.collect([storage.scan(keys, SCHEMA)], keys)[0].rows() == [(1, None), (2, "x")]


def test_a_failed_write_leaves_the_old_file_and_no_scratch(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes("page.html", b"old")

    def break_off(*_: object) -> None:
        raise StorageError("broken off")

    monkeypatch.setattr(storage._store, "put", break_off)
    with pytest.raises(StorageError, match="broken off"):
        storage.write_bytes("page.html", b"new")
    with storage.local("page.html") as path:
        assert path.read_bytes() == b"old"
    assert list(storage.scratch_parent.iterdir()) == []


def test_a_file_larger_than_one_part_arrives_whole(s3: Any, tmp_path: Path) -> None:
    storage = StudyStorage(S3Folder(BUCKET, uuid.uuid4().hex))
    content = bytes(range(256)) * (33 * 2**12)
    (tmp_path / "large").write_bytes(content)
    stored = storage.publish(tmp_path / "large", "large", rows=0)
    assert stored.bytes == len(content) > 32 * 2**20
    assert storage.sha256("large") == stored.sha256 == hashlib.sha256(content).hexdigest()


def test_what_was_left_is_swept_only_when_nobody_can_be_about_to_use_it(storage: StudyStorage) -> None:
    storage.write_bytes("repos/a/x.blocks-0.parquet", b"x")
    with storage.sweeping("repos/a", "*.blocks-*.parquet") as files:
        found = [file.key for file in files]
    # Where a lock tells, at once; else when it is a day old.
    assert found == (["repos/a/x.blocks-0.parquet"] if storage.keeps_on_disk else [])
    old = StoredObject("old", 1, '"etag" 2024-01-01T00:00:00+00:00')
    assert list(storage._store.settled([old])) == [old]


def test_what_changes_changes_the_stamp(storage: StudyStorage) -> None:
    def stamp() -> object:
        return storage.stamp(["a.parquet"], ["repos/*", "records/*/counts"])

    seen = [stamp()]
    for key in ("a.parquet", "repos/pds=a/x.parquet", "records/pds=a/counts/x.parquet"):
        storage.write_bytes(key, b"x")
        seen.append(stamp())
        assert stamp() == seen[-1]
    assert all(one != other for number, one in enumerate(seen) for other in seen[:number])


def test_a_missing_bucket_and_refused_credentials_are_said(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = StudyStorage(S3Folder("no-such-bucket", "study"))
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/study/x cannot be written: .*bucket"):
        storage.write_bytes("x", b"x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/study/repos cannot be listed"):
        storage.keys("repos")


def test_a_second_key_has_the_same_bytes_and_what_is_written_under_either_leaves_the_other(
    storage: StudyStorage,
) -> None:
    storage.write_bytes("a.bin", b"first")
    storage.write_bytes("b.bin", b"other")
    storage.duplicate({"a.bin": "copies/a.bin", "b.bin": "copies/b.bin"})
    assert storage.sizes("copies") == {"copies/a.bin": 5, "copies/b.bin": 5}
    storage.write_bytes("a.bin", b"second")
    assert storage.sha256("copies/a.bin") == hashlib.sha256(b"first").hexdigest()
    # Again, and in the place of what is there, also if it is the same file.
    storage.duplicate({"a.bin": "copies/a.bin", "b.bin": "copies/b.bin"})
    assert storage.sha256("copies/a.bin") == hashlib.sha256(b"second").hexdigest()
    storage.write_bytes("copies/b.bin", b"third")
    storage.remove("copies/a.bin")
    assert storage.sha256("b.bin") == hashlib.sha256(b"other").hexdigest()
    assert storage.exists("a.bin")
    for keys in ({"x.bin": "y.bin"}, {"x.bin": "y.bin", "x2.bin": "y2.bin"}):
        with pytest.raises(StorageError, match=r"x2?\.bin is missing"):
            storage.duplicate(keys)
    with pytest.raises(StorageError, match="not a path below"):
        storage.duplicate({"a.bin": "../a.bin"})
    assert not list(storage.scratch_parent.iterdir())


def test_where_a_file_system_has_no_links_a_second_key_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StudyStorage(tmp_path)
    storage.write_bytes("a.bin", b"first")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    storage.duplicate({"a.bin": "b.bin"})
    assert storage.path("b.bin").read_bytes() == b"first"
    assert not storage.path("a.bin").samefile(storage.path("b.bin"))
