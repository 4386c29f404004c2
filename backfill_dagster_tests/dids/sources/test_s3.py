"""Lists in S3, read over HTTP from moto's server."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backfill_dagster.config.sources import ParquetSource, S3Source
from backfill_dagster.dids.entries import SourceAccess
from backfill_dagster.errors import SourceError
from backfill_dagster_tests.dids.sources.reading import (
    DIDS,
    FileSource,
    Writer,
    columns_of,
    entries,
    frames,
    opened,
    path_of,
    write_csv,
    write_parquet,
    write_sqlite,
    write_text,
)
from backfill_dagster_tests.dids.sources.s3_server import BUCKET, point_to_s3, serve_s3


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve_s3() as url:
        yield url


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield point_to_s3(monkeypatch, server)
    httpx.post(f"{server}/moto-api/reset").raise_for_status()


def s3_source(key: str, **options: object) -> S3Source:
    return S3Source.model_validate({"type": "s3", "path": f"s3://{BUCKET}/{key}", **options})


def put(s3: Any, key: str, source: FileSource) -> None:
    s3.put_object(Bucket=BUCKET, Key=key, Body=path_of(source).read_bytes())


@pytest.mark.parametrize(
    ("write", "key"),
    [
        (write_text, "list.txt"),
        (write_csv, "list.CSV"),
        (write_parquet, "a/b/list.parquet"),
        (write_sqlite, "list.db"),
        (write_sqlite, "list.sqlite"),
    ],
)
def test_an_object_of_every_format_is_read(s3: Any, write: Writer, key: str, tmp_path: Path) -> None:
    put(s3, key, write(tmp_path, DIDS))

    assert entries(s3_source(key)) == DIDS


def test_the_format_can_be_said_where_the_name_does_not(s3: Any, tmp_path: Path) -> None:
    put(s3, "export-2024", write_csv(tmp_path, DIDS))

    assert entries(s3_source("export-2024", format="csv")) == DIDS
    assert entries(s3_source("export-2024", format="csv", column="n")) == ["0", "1", "2", "3", "4"]


def test_a_database_is_asked_with_parameters(s3: Any, tmp_path: Path) -> None:
    put(s3, "list.db", write_sqlite(tmp_path, DIDS))
    source = s3_source("list.db", query="SELECT did FROM dids WHERE n > ?", parameters=[3])

    assert entries(source) == DIDS[3:]


def test_a_prefix_stands_for_all_its_objects_of_a_format_in_order(s3: Any, tmp_path: Path) -> None:
    for key, dids in (("lists/b.txt", DIDS[2:]), ("lists/a/z.txt", DIDS[1:2]), ("lists/a.txt", DIDS[:1])):
        put(s3, key, write_text(tmp_path, dids))
    s3.put_object(Bucket=BUCKET, Key="lists/_SUCCESS", Body=b"")
    s3.put_object(Bucket=BUCKET, Key="lists/folder/", Body=b"")
    put(s3, "lists-other/c.txt", write_text(tmp_path, ["not", "these"]))

    # As bytes, `.` comes before `/`.
    assert entries(s3_source("lists/")) == DIDS
    put(s3, "lists/d.csv", write_csv(tmp_path, DIDS))
    with pytest.raises(SourceError, match=r"several formats.*backfill\.source\.format.*csv, text"):
        entries(s3_source("lists/"))
    assert entries(s3_source("lists/", format="csv")) == DIDS


def test_a_prefix_of_more_objects_than_a_page_lists(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill_dagster.dids.sources.s3._PAGE_SIZE", 2)
    for number in range(5):
        s3.put_object(Bucket=BUCKET, Key=f"many/{number}.txt", Body=f"{number}".encode())

    assert entries(s3_source("many/")) == ["0", "1", "2", "3", "4"]


def test_parquet_may_be_an_object(s3: Any, tmp_path: Path) -> None:
    put(s3, "tables/dids.parquet", write_parquet(tmp_path, DIDS))

    for path in ("tables/dids.parquet", "tables/"):
        source = ParquetSource.model_validate({"type": "parquet", "path": f"s3://{BUCKET}/{path}"})
        assert entries(source) == DIDS


def test_columns_of_an_object_are_read(s3: Any, tmp_path: Path) -> None:
    put(s3, "dids.parquet", write_parquet(tmp_path, DIDS[:2]))

    assert columns_of(s3_source("dids.parquet"), "n", "did") == [("0", DIDS[0]), ("1", DIDS[1])]


@pytest.mark.parametrize(
    "key", ["../../evil.txt", "/etc/passwd.txt", "a b?#.txt", "x" * 900 + ".txt", "..%2f.txt"]
)
def test_what_an_object_is_called_never_becomes_a_path(s3: Any, key: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    s3.put_object(Bucket=BUCKET, Key=f"odd/{key}", Body=DIDS[0].encode())
    files = sorted(tmp_path.rglob("*"))

    [batch] = frames(opened(s3_source("odd/")), SourceAccess(scratch))
    assert batch["entry"].to_list() == DIDS[:1]
    assert sorted(tmp_path.rglob("*")) == files


def test_objects_are_held_one_at_a_time(s3: Any, tmp_path: Path) -> None:
    for name in "abc":
        s3.put_object(Bucket=BUCKET, Key=f"lists/{name}.txt", Body=name.encode())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = opened(s3_source("lists/"))
    held = []

    async def read() -> None:
        async for _ in source.entries(SourceAccess(scratch)):
            held.append(sum(path.is_file() for path in scratch.rglob("*")))  # noqa: PERF401  while it is read

    asyncio.run(read())
    assert held == [1, 1, 1]
    assert list(scratch.iterdir()) == []


def test_the_stamp_follows_the_objects_and_what_is_asked(s3: Any, tmp_path: Path) -> None:
    put(s3, "lists/a.txt", write_text(tmp_path, DIDS[:1]))
    put(s3, "list.db", write_sqlite(tmp_path, DIDS))
    single, prefix, database = s3_source("lists/a.txt"), s3_source("lists/"), s3_source("list.db")
    before = [opened(source).stamp() for source in (single, prefix, database)]
    assert [opened(source).stamp() for source in (single, prefix, database)] == before

    put(s3, "lists/b.txt", write_text(tmp_path, DIDS[1:]))
    assert opened(single).stamp() == before[0]
    assert opened(prefix).stamp() != before[1]
    put(s3, "lists/a.txt", write_text(tmp_path, DIDS[2:3]))
    assert opened(single).stamp() != before[0]
    assert opened(s3_source("list.db", query="SELECT 1 AS did")).stamp() != before[2]


# --- what can be wrong ---


def complaint(source: S3Source) -> str:
    """Return what reading says, after asserting that the stamp says nothing else for a single object or a prefix."""
    with pytest.raises(SourceError) as caught:
        entries(source)
    with pytest.raises(SourceError):
        opened(source).stamp()
    return str(caught.value)


@pytest.mark.parametrize("key", ["list.txt", "lists/"])
def test_a_missing_bucket_is_named(s3: Any, key: str) -> None:
    source = S3Source.model_validate({"type": "s3", "path": f"s3://nowhere/{key}"})

    assert complaint(source) == f"backfill.source.path = 's3://nowhere/{key}': there is no bucket 'nowhere'"


def test_a_missing_object_is_named(s3: Any) -> None:
    assert complaint(s3_source("list.txt")).endswith("/list.txt': there is no such object")
    assert "there is no object" in complaint(s3_source("lists/"))


def test_a_prefix_without_lists_is_told(s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="lists/readme", Body=b"")

    assert "none of its 1 objects is of the format of any list" in complaint(s3_source("lists/"))
    assert "of the format csv" in complaint(s3_source("lists/", format="csv"))


def test_missing_credentials_are_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    assert "no credentials were found; set AWS_ACCESS_KEY_ID" in complaint(s3_source("list.txt"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    assert "no credentials were found" in complaint(s3_source("list.txt"))


@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "nobody"), ("AWS_ENDPOINT_URL_S3", "no url")])
def test_a_setting_of_the_environment_that_cannot_be_is_told(
    s3: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    assert value in complaint(s3_source("list.txt"))


def test_an_endpoint_that_does_not_answer_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bound.getsockname()[1]}")
        monkeypatch.setattr("backfill_dagster.dids.sources.s3._ATTEMPTS", 1)

        assert "cannot be read: Could not connect to the endpoint" in complaint(s3_source("list.txt"))


def test_an_object_of_another_kind_is_named_by_its_address(s3: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key="lists/a.parquet", Body=b"no")

    with pytest.raises(SourceError) as caught:
        entries(s3_source("lists/"))
    message = str(caught.value)
    assert message.startswith(
        f"backfill.source.path = 's3://{BUCKET}/lists/a.parquet': cannot be read as Parquet"
    )


def test_a_missing_column_of_an_object_is_told(s3: Any, tmp_path: Path) -> None:
    put(s3, "dids.csv", write_csv(tmp_path, DIDS))

    with pytest.raises(SourceError) as caught:
        entries(s3_source("dids.csv", column="account"))
    assert f"backfill.source.column = 'account': s3://{BUCKET}/dids.csv has no such column" in str(
        caught.value
    )
