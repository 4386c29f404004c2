"""What a study's files in S3 promise beside what those on a disk do."""

import io
import logging
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from backfill_dagster.errors import StorageError
from backfill_dagster.purge.rewrite import remove_leftovers
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.stores import s3_object
from backfill_dagster.stores.location import S3Folder
from backfill_dagster.stores.run_lock import run_lock
from backfill_dagster.stores.s3 import S3Store
from backfill_dagster.stores.s3_errors import s3_error
from backfill_dagster.stores.s3_object import ObjectFile
from backfill_dagster.stores.store import StoredObject
from backfill_dagster.tables.ledger import LEDGER_SCHEMA, note_built, read_built
from backfill_dagster_tests.dids.sources.s3_server import BUCKET, point_to_s3

PROFILE = "[lab]\naws_access_key_id = test\naws_secret_access_key = test\n"


@pytest.fixture(scope="module")
def s3(s3_url: str) -> Iterator[Any]:
    """A client; to make one takes longer than most of these tests."""
    with pytest.MonkeyPatch.context() as environment:
        yield point_to_s3(environment, s3_url)


@pytest.fixture
def place(s3: Any) -> S3Folder:
    return S3Folder(BUCKET, uuid.uuid4().hex) / "study"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder below which all users make their temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


# What stays behind


def test_a_purge_removes_blocks_that_no_pack_names_however_young(place: S3Folder) -> None:
    storage = StudyStorage(place)
    storage.write_bytes("repos/pds=a/0123456789abcdef0123.blocks-0.parquet", b"of a purged account")
    remove_leftovers(storage)
    assert storage.keys("repos") == []


def test_nothing_is_left_of_what_was_removed_where_a_bucket_keeps_versions(s3: Any) -> None:
    bucket = f"versions-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    storage, other = (StudyStorage(S3Folder(bucket) / name) for name in ("study", "study2"))
    for one in (storage, other):
        one.write_bytes("kept", b"old")
        one.write_bytes("kept", b"new")
        one.write_bytes("removed", b"old")
        one.remove("removed")
    s3.create_multipart_upload(Bucket=bucket, Key="study/broken off")
    s3.create_multipart_upload(Bucket=bucket, Key="study2/broken off")
    storage.forget_removed()
    assert storage.read_bytes("kept") == b"new"
    told = s3.list_object_versions(Bucket=bucket, Prefix="study/")
    assert [version["Key"] for version in told["Versions"]] == ["study/kept"]
    assert "DeleteMarkers" not in told
    # Nobody else's are touched.
    assert len(s3.list_object_versions(Bucket=bucket, Prefix="study2/")["Versions"]) == 3
    assert [upload["Key"] for upload in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [
        "study2/broken off"
    ]


def test_a_bucket_of_which_it_cannot_be_told_is_warned_of(
    place: S3Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = StudyStorage(place)

    class Refusing:
        def get_paginator(self, operation: str) -> Any:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, operation)

        def get_bucket_versioning(self, **_: object) -> Any:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "GetBucketVersioning")

    monkeypatch.setattr(S3Store, "_client", Refusing())
    with caplog.at_level(logging.WARNING, "backfill_dagster.stores.s3"):
        storage.forget_removed()
    assert "s3:ListBucketMultipartUploads" in caplog.text
    assert "s3:GetBucketVersioning" in caplog.text


# Scratch


def test_scratch_is_for_this_user_alone(place: S3Folder, temporary: Path) -> None:
    with StudyStorage(place).scratch() as folder:
        for made in (folder, folder.parent, folder.parent.parent):
            assert made.stat().st_mode & 0o077 == 0
        assert folder.is_relative_to(temporary)


@pytest.mark.parametrize("trap", ["link", "writable", "file"])
def test_scratch_that_others_could_change_is_refused(place: S3Folder, temporary: Path, trap: str) -> None:
    folder, elsewhere = temporary / f"backfill_dagster-{os.getuid()}", temporary / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if trap == "link":
        folder.symlink_to(elsewhere)
    elif trap == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    storage = StudyStorage(place)
    with pytest.raises(StorageError, match="set TMPDIR to a folder of your own"):
        storage.write_bytes("x", b"x")
    assert list(elsewhere.iterdir()) == []


def test_a_full_disk_is_not_taken_for_an_object_that_cannot_be_read(
    place: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StudyStorage(place)
    storage.write_bytes("x", b"x")

    class Full:
        def download_file(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(S3Store, "_client", Full())
    with (
        pytest.raises(StorageError, match=r"/copy-\w+ cannot be written: .*free some space"),
        storage.local("x"),
    ):
        pass


def test_what_is_done_with_a_copy_is_not_taken_for_reading_it(place: S3Folder) -> None:
    storage = StudyStorage(place)
    storage.write_bytes("x", b"x")
    with pytest.raises(OSError, match="of another file"), storage.local("x"):
        raise OSError("of another file")


# Reading


class _Answers:
    """A server whose answers break off after some bytes; `etag` is what it has by then."""

    def __init__(self, content: bytes, breaks: int) -> None:
        self.content, self.breaks, self.asked, self.etag = content, breaks, 0, "1"

    def head_object(self, **_: object) -> dict[str, Any]:
        return {"ContentLength": len(self.content), "ETag": self.etag}

    def get_object(self, *, Range: str, IfMatch: str, **_: object) -> dict[str, Any]:  # noqa: N803  AWS's
        if self.etag != IfMatch:
            raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "GetObject")
        self.asked += 1
        rest = self.content[int(Range.removeprefix("bytes=").rstrip("-")) :]
        return {"Body": _Broken(rest[:1000]) if self.asked <= self.breaks else io.BytesIO(rest)}


class _Broken(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if not found:
            raise ReadTimeoutError(endpoint_url="s3")
        return found


def nothing_said() -> AbstractContextManager[None]:
    return nullcontext()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_object, "_TRY_AGAIN_SECONDS", 0)


@pytest.mark.usefixtures("at_once")
def test_an_answer_that_breaks_off_is_asked_for_again_from_there() -> None:
    content = bytes(range(256)) * 40
    server = _Answers(content, breaks=3)
    with io.BufferedReader(ObjectFile(server, "b", "x", nothing_said)) as file:
        assert file.read() == content
    assert server.asked == 4


@pytest.mark.usefixtures("at_once")
def test_a_server_whose_answers_always_break_off_is_given_up() -> None:
    with ObjectFile(_Answers(bytes(900), breaks=99), "b", "x", nothing_said) as file:
        assert len(file.read(900)) == 900
    server = _Answers(b"", breaks=99)
    server.head_object = lambda **_: {"ContentLength": 10, "ETag": "1"}  # type: ignore[method-assign]
    with ObjectFile(server, "b", "x", nothing_said) as file, pytest.raises(ReadTimeoutError):
        file.read(10)
    assert server.asked == s3_object._TRIES


def test_a_file_is_read_at_any_place_and_in_order_by_one_request() -> None:
    content = os.urandom(300_000)
    server = _Answers(content, breaks=0)
    with io.BufferedReader(ObjectFile(server, "b", "x", nothing_said)) as file:
        assert b"".join(iter(lambda: file.read(10_000), b"")) == content
        assert server.asked == 1
        assert file.seek(-8, os.SEEK_END) == len(content) - 8
        assert file.read(100) == content[-8:]
        file.seek(1_000)
        assert file.read(5) == content[1_000:1_005]
        assert file.tell() == 1_005


def test_what_is_written_anew_meanwhile_is_not_mixed_with_what_was_there(place: S3Folder) -> None:
    storage = StudyStorage(place)
    storage.write_bytes("x", bytes(200_000))
    with storage._store.open("x") as file:
        storage.write_bytes("x", b"1" * 200_000)
        with pytest.raises(StorageError, match=r"study/x cannot be read.*another process has written it"):
            file.read()


def test_a_ledger_that_cannot_be_reached_is_not_taken_for_an_empty_one(
    place: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StudyStorage(place)
    entry = pl.DataFrame([("tables/likes/month=2024-10", "a", 1, 2, 3)], schema=LEDGER_SCHEMA, orient="row")
    note_built(storage, "likes", ["tables/likes/month=2024-10"], entry)

    def fail(*_: object, **__: object) -> None:
        raise StorageError("the network is down")

    with monkeypatch.context() as down:
        down.setattr(StudyStorage, "collect", fail)
        down.setattr(S3Store, "open", fail)
        with pytest.raises(StorageError, match="the network is down"):
            note_built(storage, "likes", ["tables/likes/month=2024-11"], entry.clear())
    assert read_built(storage, "likes").equals(entry)
    storage.write_bytes("built/likes.parquet", b"damaged")
    assert read_built(storage, "likes").is_empty()


def test_folders_that_the_console_made_are_no_files(place: S3Folder, s3: Any) -> None:
    storage = StudyStorage(place)
    storage.write_bytes("tables/x.parquet", b"x")
    for name in ("", "tables/", "tables/posts/"):
        s3.put_object(Bucket=BUCKET, Key=f"{place.prefix}/{name}", Body=b"")
    assert [file.key for file in storage.everything()] == ["tables/x.parquet"]
    assert storage.keys("tables", "*") == ["tables/x.parquet"]


def test_sizes_of_many_files_take_a_request_for_each_folder(
    place: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StudyStorage(place)
    keys = [f"{folder}/{number}.parquet" for folder in ("a", "b") for number in range(5)]
    for key in (*keys, "a/other.parquet"):
        storage.write_bytes(key, b"123")

    def refuse(self: S3Store, key: str) -> None:
        raise AssertionError(key)

    monkeypatch.setattr(S3Store, "find", refuse)
    assert storage.sizes_of([*keys, "a/none.parquet"]) == dict.fromkeys(keys, 3)


def test_packs_of_all_hosts_take_one_listing(place: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = StudyStorage(place)
    hosts = ["pds.test", "a:1", "b/c", "zz"]
    keys = {
        host: f"repos/{partition_folder(host)}/{number:020x}.parquet" for number, host in enumerate(hosts)
    }
    for key in (*keys.values(), *(key.replace(".parquet", ".blocks-0.parquet") for key in keys.values())):
        storage.write_bytes(key, b"x")
    told = [
        (host, keys[host].rpartition("/")[2].removesuffix(".parquet"), keys[host]) for host in sorted(hosts)
    ]
    assert pack_keys(storage, hosts) == told
    listed: list[str] = []
    files = S3Store.files

    def noted(self: S3Store, prefix: str) -> list[StoredObject]:
        listed.append(prefix)
        return files(self, prefix)

    monkeypatch.setattr(S3Store, "files", noted)
    assert pack_keys(storage) == told
    assert listed == ["repos"]


# Credentials and rights


def test_files_are_read_with_the_credentials_of_a_profile(place: S3Folder, tmp_path: Path) -> None:
    """By Polars as well, which looks for them by itself, and at another server than AWS's own."""
    StudyStorage(place).write("x.parquet", pl.DataFrame({"a": [1]}))
    (tmp_path / "credentials").write_text(PROFILE)
    script = f"""
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stores.location import S3Folder
storage = StudyStorage({place!r})
assert storage.read("x.parquet").height == storage.rows("x.parquet") == 1
"""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "AWS_ENDPOINT_URL_S3": os.environ["AWS_ENDPOINT_URL_S3"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_PROFILE": "lab",
    }
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_profile_that_is_not_there_is_said(place: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    asked: list[Callable[[], bool]] = [
        lambda: run_lock(place).is_held(),
        lambda: StudyStorage(place).exists("x"),
    ]
    for ask in asked:
        with pytest.raises(StorageError, match=r"study.* cannot be .*\(none\).*set AWS_ACCESS_KEY_ID"):
            ask()


CODES = [
    ("AccessDenied", "s3:ListBucket on the bucket"),
    # What a HEAD of an object that is not there is answered with, if the bucket may not be listed.
    ("403", "s3:ListBucket on the bucket"),
    ("InvalidAccessKeyId", "set AWS_ACCESS_KEY_ID"),
    ("ExpiredToken", "set AWS_ACCESS_KEY_ID"),
    ("NoSuchBucket", "make the bucket"),
    ("RequestTimeTooSkewed", "clock"),
    ("InternalError", "mend that"),
]


@pytest.mark.parametrize(("code", "advice"), CODES)
def test_an_error_says_what_to_do(code: str, advice: str) -> None:
    error = ClientError({"Error": {"Code": code, "Message": "so"}}, "GetObject")
    told = str(s3_error("s3://b/x cannot be read", error))
    assert told.startswith("s3://b/x cannot be read: ")
    assert advice in told
    assert "run the same again" in told
