"""What all kinds of files have in common."""

import asyncio
import os
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.config.sources import InlineSource, SqliteSource, TextSource
from backfill_dagster.dids.entries import BATCH_ROWS, SourceAccess
from backfill_dagster.errors import SourceError
from backfill_dagster_tests.dids.sources.reading import (
    DIDS,
    WRITERS,
    Writer,
    columns_of,
    entries,
    frames,
    made_up,
    opened,
    path_of,
    write_csv,
    write_parquet,
    write_sqlite,
    write_text,
)


def test_inline_dids_are_taken_as_they_stand() -> None:
    assert entries(InlineSource(type="inline", dids=(*DIDS, "", "x"))) == [*DIDS, "", "x"]


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_gives_its_entries_in_order_and_leaves_the_folder_alone(
    write: Writer, tmp_path: Path
) -> None:
    source = write(tmp_path, DIDS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert entries(source) == DIDS
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("write", WRITERS)
def test_a_long_source_comes_in_bounded_batches(write: Writer, tmp_path: Path) -> None:
    dids = made_up(2 * BATCH_ROWS + 7)
    batches = frames(opened(write(tmp_path, dids)))

    assert max(map(len, batches)) <= BATCH_ROWS
    assert pl.concat(batches)["entry"].to_list() == dids


@pytest.mark.parametrize("write", [write_text, write_csv, write_sqlite])
def test_what_is_no_text_costs_its_entry_only(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, ["did:plc:MARK", DIDS[0]])
    path_of(source).write_bytes(path_of(source).read_bytes().replace(b"MARK", b"\xff\xfe\xfd\xfc"))

    damaged, sound = entries(source)
    assert sound == DIDS[0]
    assert damaged is not None
    assert "\ufffd" in damaged


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_file_is_named_with_its_field(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS)
    path_of(source).unlink()

    with pytest.raises(SourceError) as caught:
        entries(source)
    assert "backfill.source.path" in str(caught.value)
    assert str(path_of(source)) in str(caught.value)
    assert "no such file" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
def test_a_directory_is_no_file(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS).model_copy(update={"path": tmp_path})

    with pytest.raises(SourceError, match="is a directory"):
        entries(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_may_not_be_read_is_told(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS)
    path_of(source).chmod(0)

    with pytest.raises(SourceError, match=r"backfill\.source"):
        entries(source)


@pytest.mark.parametrize("content", [b"", b"PAR1 is not all", b"\x00" * 1000, "did\nno\n".encode("utf-16")])
@pytest.mark.parametrize("write", [write_parquet, write_sqlite])
def test_a_file_of_another_kind_is_told(write: Writer, content: bytes, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS)
    path_of(source).write_bytes(content)

    with pytest.raises(SourceError, match=r"backfill\.source") as caught:
        entries(source)
    assert len(str(caught.value)) < 1000


def test_the_path_of_a_source_is_named() -> None:
    named = opened(TextSource(type="text", path=Path("a/b.txt"))).describe()
    assert named == "backfill.source.path = 'a/b.txt'"
    assert opened(InlineSource(type="inline", dids=("x",))).describe() == "backfill.source.dids"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc")
@pytest.mark.parametrize("write", [write_text, write_sqlite])
def test_a_source_that_is_left_half_read_is_closed(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, made_up(BATCH_ROWS + 1))

    def is_open() -> bool:
        return str(path_of(source)) in [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]

    async def read_in_part() -> None:
        batches = opened(source).entries(SourceAccess(tmp_path))
        assert (await anext(batches)).height == BATCH_ROWS
        assert is_open()
        del batches
        await asyncio.sleep(0)

    asyncio.run(read_in_part())
    assert not is_open()


@pytest.mark.parametrize("write", WRITERS)
def test_a_stamp_changes_with_the_file_and_with_what_is_asked_of_it(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS)
    before = opened(source).stamp()
    assert opened(source).stamp() == before

    if not isinstance(source, TextSource):
        assert opened(source.model_copy(update={"column": "n"})).stamp() != before
    path_of(source).unlink()
    write(tmp_path, DIDS[:3])
    assert opened(source).stamp() != before
    path_of(source).unlink()
    with pytest.raises(SourceError, match="no such file"):
        opened(source).stamp()


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_sqlite])
def test_several_columns_are_read_as_text(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS[:2])
    if isinstance(source, SqliteSource):
        source = source.model_copy(update={"query": "SELECT did, n - 1 AS n FROM dids"})

    assert columns_of(source, "did", "n") == [(DIDS[0], "0"), (DIDS[1], "1")]
    assert columns_of(source, "n") == [("0",), ("1",)]
    with pytest.raises(SourceError, match=r"backfill\.source.*'date'"):
        columns_of(source, "did", "date")


def test_a_text_file_has_one_column_of_any_name(tmp_path: Path) -> None:
    source = write_text(tmp_path, DIDS[:2])

    assert columns_of(source, "uri") == [(DIDS[0],), (DIDS[1],)]
    with pytest.raises(SourceError, match="one entry a line, not the columns uri, date"):
        columns_of(source, "uri", "date")


def test_what_is_no_file_has_no_columns() -> None:
    with pytest.raises(SourceError, match=r"backfill\.source\.type = 'inline': has no columns"):
        columns_of(InlineSource(type="inline", dids=("x",)), "uri")
