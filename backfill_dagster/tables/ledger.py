"""What the files of each table were built from: the ledger by which only what has changed is built again.

It lies outside of the folders that users read. A part is entered after its file is written, and its entry is
taken out before the file is written again, so that an entry that is there is true, whenever a run ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.storage import StudyStorage

LEDGER_FOLDER = "built"

LEDGER_COLUMNS = (
    Column("folder", pl.String(), "Folder of one time window, or of the undated rows.", required=True),
    Column("part", pl.String(), "Name of the file; null in the one row of a folder without files."),
    Column("digest", pl.UInt64(), "Digest of the content that the file was made of.", required=True),
    Column("rows", pl.Int64(), "Rows of the file.", required=True),
    Column("bytes", pl.Int64(), "Size of the file.", required=True),
)
LEDGER_SCHEMA = schema_of(LEDGER_COLUMNS)


def ledger_key(table: str) -> str:
    """Return where the ledger of a table is stored."""
    return f"{LEDGER_FOLDER}/{table}.parquet"


def read_built(storage: StudyStorage, table: str) -> pl.DataFrame:
    """Return the ledger of a table (LEDGER_SCHEMA); one that cannot be read is as good as none.

    Raises StorageError for one that cannot be reached: whoever took that for none would write it as if it were.
    """
    key = ledger_key(table)
    try:
        return storage.collect([storage.scan([key], LEDGER_SCHEMA)], [key])[0]
    except StorageError:
        if not storage.keeps_on_disk and storage.exists(key):
            storage.read_bytes(key)
        return pl.DataFrame(schema=LEDGER_SCHEMA)


def built_rows(storage: StudyStorage, table: str) -> int:
    """Return how many rows all time windows of a table hold together."""
    return int(
        read_built(storage, table).filter(pl.col("folder").str.starts_with(f"tables/{table}/"))["rows"].sum()
    )


def note_built(storage: StudyStorage, table: str, folders: Iterable[str], entries: pl.DataFrame) -> None:
    """Let these entries (LEDGER_SCHEMA) stand for these folders of a table; those of other folders stay."""
    # Runs may build different windows of a table at once.
    with storage.alone(LEDGER_FOLDER):
        built = read_built(storage, table)
        others = built.filter(~pl.col("folder").is_in(list(folders)))
        told = pl.concat([others, entries]).sort("folder", "part")
        if not told.equals(built):
            storage.write(ledger_key(table), told)
