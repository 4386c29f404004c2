"""Sources for tests: files of every kind with made-up DIDs, and how a source is read to its end."""

import asyncio
import random
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import polars as pl

from backfill_dagster.config.sources import (
    CsvSource,
    ParquetSource,
    Source,
    SqliteSource,
    TextSource,
)
from backfill_dagster.dids.entries import ENTRIES_SCHEMA, EntrySource, SourceAccess
from backfill_dagster.dids.sources.by_type import entry_source, read_columns

FIELD = "backfill.source"
STORAGE = Path("no storage")


def made_up(count: int, seed: int = 1) -> list[str]:
    letters = random.Random(seed)
    return [
        "did:plc:" + "".join(letters.choices("abcdefghijklmnopqrstuvwxyz234567", k=24)) for _ in range(count)
    ]


DIDS = made_up(5)


def opened(source: Source, *, storage: Path = STORAGE, column: str = "did") -> EntrySource:
    return entry_source(source, FIELD, storage=storage, column=column)


def frames(source: EntrySource, access: SourceAccess | None = None) -> list[pl.DataFrame]:
    """Return the batches of a source that asks no servers."""

    async def read(folder: str) -> list[pl.DataFrame]:
        return [batch async for batch in source.entries(access or SourceAccess(Path(folder)))]

    with tempfile.TemporaryDirectory() as folder:
        batches = asyncio.run(read(folder))
        assert not list(Path(folder).iterdir())
    assert all(batch.schema == ENTRIES_SCHEMA for batch in batches)
    return batches


def entries(source: Source, *, storage: Path = STORAGE, column: str = "did") -> list[str | None]:
    """Return the entries of a source in which each stands for itself."""
    batches = frames(opened(source, storage=storage, column=column))
    assert all(batch["input"].equals(batch["entry"]) for batch in batches)
    assert all(batch["reason"].is_null().all() for batch in batches)
    return [entry for batch in batches for entry in batch["entry"]]


def columns_of(source: Source, *columns: str, storage: Path = STORAGE) -> list[tuple[str | None, ...]]:
    """Return columns of a source, row by row."""
    with tempfile.TemporaryDirectory() as folder:
        access = SourceAccess(Path(folder))
        batches = list(read_columns(source, FIELD, columns, access, storage=storage))
    return [row for batch in batches for row in batch.rows()]


def write_text(folder: Path, dids: list[str]) -> TextSource:
    path = folder / "dids.txt"
    path.write_text("\n".join(dids))
    return TextSource(type="text", path=path)


def write_csv(folder: Path, dids: list[str]) -> CsvSource:
    path = folder / "dids.csv"
    pl.DataFrame({"n": range(len(dids)), "did": dids}).write_csv(path)
    return CsvSource(type="csv", path=path)


def write_parquet(folder: Path, dids: list[str]) -> ParquetSource:
    path = folder / "dids.parquet"
    pl.DataFrame({"n": range(len(dids)), "did": dids}).write_parquet(path)
    return ParquetSource(type="parquet", path=path)


def write_sqlite(folder: Path, dids: list[str]) -> SqliteSource:
    path = folder / "dids.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE dids (n INTEGER PRIMARY KEY, did TEXT)")
        database.executemany("INSERT INTO dids (did) VALUES (?)", [(did,) for did in dids])
    return SqliteSource(type="sqlite", path=path)


FileSource = TextSource | CsvSource | ParquetSource | SqliteSource
Writer = Callable[[Path, list[str]], FileSource]
WRITERS: list[Writer] = [write_text, write_csv, write_parquet, write_sqlite]


def path_of(source: FileSource) -> Path:
    return Path(source.path)
