import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.config import (
    CsvSource,
    InlineSource,
    ParquetSource,
    Source,
    SqliteSource,
    TextSource,
)
from backfill_dagster.dids.sources import BATCH_ROWS, describe, read_batches
from backfill_dagster.errors import SourceError


def made_up(count: int, seed: int = 1) -> list[str]:
    letters = random.Random(seed)
    return [
        "did:plc:" + "".join(letters.choices("abcdefghijklmnopqrstuvwxyz234567", k=24)) for _ in range(count)
    ]


DIDS = made_up(5)


def entries(source: Source) -> list[str | None]:
    return [entry for batch in read_batches(source) for entry in batch]


def write_text(folder: Path, dids: list[str]) -> Source:
    path = folder / "dids.txt"
    path.write_text("\n".join(dids))
    return TextSource(type="text", path=path)


def write_csv(folder: Path, dids: list[str]) -> Source:
    path = folder / "dids.csv"
    pl.DataFrame({"n": range(len(dids)), "did": dids}).write_csv(path)
    return CsvSource(type="csv", path=path)


def write_parquet(folder: Path, dids: list[str]) -> Source:
    path = folder / "dids.parquet"
    pl.DataFrame({"n": range(len(dids)), "did": dids}).write_parquet(path)
    return ParquetSource(type="parquet", path=path)


def write_sqlite(folder: Path, dids: list[str]) -> Source:
    path = folder / "dids.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE dids (n INTEGER PRIMARY KEY, did TEXT)")
        database.executemany("INSERT INTO dids (did) VALUES (?)", [(did,) for did in dids])
    return SqliteSource(type="sqlite", path=path)


WRITERS = [write_text, write_csv, write_parquet, write_sqlite]
Writer = Callable[[Path, list[str]], Source]


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
    batches = list(read_batches(write(tmp_path, dids)))

    assert max(map(len, batches)) <= BATCH_ROWS
    assert pl.concat(batches).to_list() == dids


@pytest.mark.parametrize("write", [write_text, write_csv, write_sqlite])
def test_what_is_no_text_costs_its_entry_only(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, ["did:plc:MARK", DIDS[0]])
    assert not isinstance(source, InlineSource)
    source.path.write_bytes(source.path.read_bytes().replace(b"MARK", b"\xff\xfe\xfd\xfc"))

    damaged, sound = entries(source)
    assert sound == DIDS[0]
    assert damaged is not None
    assert "\ufffd" in damaged


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_file_is_named_with_its_field(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS)
    assert not isinstance(source, InlineSource)
    source.path.unlink()

    with pytest.raises(SourceError) as caught:
        entries(source)
    assert "backfill.source.path" in str(caught.value)
    assert str(source.path) in str(caught.value)
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
    assert not isinstance(source, InlineSource)
    source.path.chmod(0)

    with pytest.raises(SourceError, match=r"backfill\.source"):
        entries(source)


@pytest.mark.parametrize("content", [b"", b"PAR1 is not all", b"\x00" * 1000, "did\nno\n".encode("utf-16")])
@pytest.mark.parametrize("write", [write_parquet, write_sqlite])
def test_a_file_of_another_kind_is_told(write: Writer, content: bytes, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS)
    assert not isinstance(source, InlineSource)
    source.path.write_bytes(content)

    with pytest.raises(SourceError, match=r"backfill\.source") as caught:
        entries(source)
    assert len(str(caught.value)) < 1000


def test_the_path_of_a_source_is_named() -> None:
    assert describe(TextSource(type="text", path=Path("a/b.txt"))) == "backfill.source.path = 'a/b.txt'"
    assert describe(InlineSource(type="inline", dids=("x",))) == "backfill.source.dids"


# --- text ---


def test_empty_lines_and_comments_of_a_text_file_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "dids.txt"
    path.write_bytes(f"\ufeff# our panel\r\n\r\n  {DIDS[0]}  \r\n\t# {DIDS[1]}\n\n{DIDS[2]}".encode())

    assert entries(TextSource(type="text", path=path)) == [DIDS[0], DIDS[2]]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "dids.txt"
    path.write_bytes(b"x" * 3_000_000 + b"\n" + DIDS[0].encode() + b"\n" + b"y" * 20_000)

    long, did, last = entries(TextSource(type="text", path=path))
    assert did == DIDS[0]
    assert long is not None
    assert last is not None
    assert len(long) == len(last) == 16_384


# --- CSV ---


def test_a_csv_column_can_be_chosen_and_others_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "panel.csv"
    path.write_text(f'weight,account,note\n1,{DIDS[0]},"a, b"\nx,,\n,"{DIDS[1]}",üñ\n3\n')

    assert entries(CsvSource(type="csv", path=path, column="account")) == [DIDS[0], None, DIDS[1], None]


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_a_missing_column_is_answered_with_those_there_are(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, DIDS).model_copy(update={"column": "DID"})

    with pytest.raises(SourceError) as caught:
        entries(source)
    assert "backfill.source.column = 'DID'" in str(caught.value)
    assert "'n', 'did'" in str(caught.value)


def test_an_empty_csv_is_told(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_bytes(b"")

    with pytest.raises(SourceError, match=r"backfill\.source"):
        entries(CsvSource(type="csv", path=path))


def test_a_csv_whose_rows_disagree_with_its_header_is_told_or_read(tmp_path: Path) -> None:
    path = tmp_path / "ragged.csv"
    path.write_text(f"did\n{DIDS[0]},extra,more\n{DIDS[1]}\n")

    assert entries(CsvSource(type="csv", path=path)) == DIDS[:2]


def test_a_path_with_magic_characters_is_one_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "list[1]*.csv"
    path.write_text(f"did\n{DIDS[0]}\n")

    assert entries(CsvSource(type="csv", path=path)) == DIDS[:1]


# --- Parquet ---


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, dids in (("b", DIDS[2:]), ("a", DIDS[:2])):
        pl.DataFrame({"did": dids}).write_parquet(tmp_path / f"{name}.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "c.other")

    assert entries(ParquetSource(type="parquet", path=tmp_path / "*.parquet")) == DIDS


def test_a_glob_without_match_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file matches"):
        entries(ParquetSource(type="parquet", path=tmp_path / "*.parquet"))


def test_a_damaged_file_of_a_glob_is_named(tmp_path: Path) -> None:
    pl.DataFrame({"did": DIDS}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"no")

    with pytest.raises(SourceError, match=r"b\.parquet"):
        entries(ParquetSource(type="parquet", path=tmp_path / "*.parquet"))


@pytest.mark.parametrize("name", ["did", "^did$", "*", "a b"])
@pytest.mark.parametrize("kind", [pl.String, pl.Categorical])
def test_a_parquet_column_may_be_called_and_encoded_as_it_likes(
    name: str, kind: type[pl.DataType], tmp_path: Path
) -> None:
    path = tmp_path / "panel.parquet"
    pl.DataFrame({"n": [1, 2], name: pl.Series([DIDS[0], None], dtype=kind)}).write_parquet(path)

    assert entries(ParquetSource(type="parquet", path=path, column=name)) == [DIDS[0], None]


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "panel.parquet"
    pl.DataFrame({"did": [1, 2]}).write_parquet(path)

    with pytest.raises(SourceError, match="column of text"):
        entries(ParquetSource(type="parquet", path=path))


# --- SQLite ---


def sqlite(source: Source, query: str) -> SqliteSource:
    assert isinstance(source, SqliteSource)
    return source.model_copy(update={"query": query})


@pytest.mark.parametrize(
    "query",
    [
        "SELECT did FROM dids ORDER BY n",
        "SELECT n, did, 'x' AS other FROM dids ORDER BY n",
        "WITH chosen AS (SELECT * FROM dids) SELECT did FROM chosen ORDER BY n",
        "SELECT d.did AS did FROM dids d JOIN dids e USING (n) GROUP BY d.did ORDER BY min(d.n)",
        "SELECT did FROM dids ORDER BY n;",
    ],
)
def test_a_query_can_read_as_it_likes(query: str, tmp_path: Path) -> None:
    assert entries(sqlite(write_sqlite(tmp_path, DIDS), query)) == DIDS


def test_values_that_are_no_text_become_text(tmp_path: Path) -> None:
    query = "SELECT NULL AS did UNION ALL SELECT 7 UNION ALL SELECT 0.5 UNION ALL SELECT x'6469643a'"

    assert entries(sqlite(write_sqlite(tmp_path, []), query)) == [None, "7", "0.5", "did:"]


def test_a_result_without_a_did_column_is_answered_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        entries(sqlite(write_sqlite(tmp_path, DIDS), "SELECT n, did AS account FROM dids"))
    assert "backfill.source.query" in str(caught.value)
    assert "'n', 'account'" in str(caught.value)
    assert "AS did" in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM dids",
        "INSERT INTO dids (did) VALUES ('x') RETURNING did",
        "UPDATE dids SET did = 'x' RETURNING did",
        "DROP TABLE dids",
        "CREATE TABLE other (did TEXT)",
        "CREATE TEMP TABLE other (did TEXT)",
        "ATTACH DATABASE 'other.sqlite' AS other",
        "ATTACH DATABASE 'file:other.sqlite?mode=rwc' AS other",
        "VACUUM",
        "VACUUM INTO 'other.sqlite'",
        "PRAGMA journal_mode = WAL",
    ],
)
def test_a_query_that_writes_fails_and_changes_nothing(
    query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_sqlite(tmp_path, DIDS)
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(SourceError, match="may only read"):
        entries(sqlite(source, query))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "query", ["SELECT", "SELECT did FROM nowhere", "SELECT 1; SELECT 2", "", "-- nothing"]
)
def test_a_query_that_cannot_run_is_told(query: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"backfill\.source\.query"):
        entries(sqlite(write_sqlite(tmp_path, DIDS), query))


def test_a_path_with_characters_of_a_url_is_one_file(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS)
    assert isinstance(source, SqliteSource)
    odd = source.path.rename(tmp_path / "a?mode=rwc&x#y%20 ü.sqlite")

    assert entries(source.model_copy(update={"path": odd})) == DIDS


def test_a_database_at_rest_in_write_ahead_mode_gets_no_files_beside_it(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS)
    assert isinstance(source, SqliteSource)
    with closing(sqlite3.connect(source.path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    assert [path.name for path in tmp_path.iterdir()] == ["dids.sqlite"]

    assert entries(source) == DIDS
    assert [path.name for path in tmp_path.iterdir()] == ["dids.sqlite"]


def test_what_a_writer_has_committed_is_read_while_it_writes(tmp_path: Path) -> None:
    source = write_sqlite(tmp_path, DIDS[:3])
    assert isinstance(source, SqliteSource)
    with closing(sqlite3.connect(source.path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executemany("INSERT INTO dids (did) VALUES (?)", [(did,) for did in DIDS[3:]])
        database.commit()
        database.execute("INSERT INTO dids (did) VALUES ('uncommitted')")

        assert entries(source) == DIDS
        database.rollback()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc")
@pytest.mark.parametrize("write", [write_text, write_sqlite])
def test_a_source_that_is_left_half_read_is_closed(write: Writer, tmp_path: Path) -> None:
    source = write(tmp_path, made_up(BATCH_ROWS + 1))
    assert not isinstance(source, InlineSource)

    def is_open() -> bool:
        return str(source.path) in [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]

    batches = read_batches(source)
    assert len(next(batches)) == BATCH_ROWS
    assert is_open()
    del batches
    assert not is_open()
