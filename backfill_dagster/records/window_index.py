"""The index of a pack's conversion: how many rows each account has in each window of each table.

It tells which windows a changed pack concerns, and which files a window is made of, without a look at the records.
A pack never changes, so that its rows in a window have an identity: their `content`, a number that stands for the
account, the converted file and the settings that it was converted with.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.records.windows import UNDATED, Granularity
from backfill_dagster.storage import partition_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

INDEX_COLUMNS = (
    Column("did", pl.String(), "DID of the account.", required=True),
    Column("pack", pl.String(), "Name of the pack.", required=True),
    Column(
        "number",
        pl.Int32(),
        "Number of the blocks file within the pack, and so of the converted file.",
        required=True,
    ),
    Column("table", pl.String(), "Table that the rows are of.", required=True),
    Column("window", pl.String(), "Key of their time window, or `undated`.", required=True),
    Column(
        "rows", pl.Int64(), "How many of the account's rows of the table are of that window.", required=True
    ),
    Column("bytes", pl.Int64(), "Size of the converted file.", required=True),
    Column("content", pl.UInt64(), "Number that stands for these rows: their identity.", required=True),
)
INDEX_SCHEMA = schema_of(INDEX_COLUMNS)
# Rows of a converted file that are read or passed over together.
ROWS_IN_GROUP = 2**14
# What the index of a converted file is made of.
INDEXED_COLUMNS = ("did", "created_at", "date_quality")


def index_key(pds_host: str, pack: str) -> str:
    """Return where the index of a pack is stored."""
    return f"records/{partition_folder(pds_host)}/windows/{pack}.parquet"


def index_files(
    files: Mapping[str, tuple[pl.DataFrame, int]],
    *,
    pack: str,
    number: int,
    fingerprint: str,
    granularity: Granularity,
) -> pl.DataFrame:
    """Return the index (INDEX_SCHEMA) of what a pack's n-th blocks file was converted to.

    `files` are the rows (INDEXED_COLUMNS) and the size in bytes of each converted file, by table.
    """
    if not files:
        return pl.DataFrame(schema=INDEX_SCHEMA)
    every = [rows.select(*INDEXED_COLUMNS, table=pl.lit(table)) for table, (rows, _) in files.items()]
    counted = (
        pl.concat(every)
        .group_by("table", "did", granularity.start_of_row().alias("start"))
        .agg(rows=pl.len())
    )
    keys = counted.select("table", "did").unique()
    contents = [stable_number(f"{pack}-{number} {table} {did} {fingerprint}") for table, did in keys.rows()]
    of_files = pl.DataFrame(
        {"table": list(files), "bytes": [size for _, size in files.values()], "place": range(len(files))}
    )
    return (
        counted.lazy()
        .join(keys.lazy().with_columns(content=pl.Series(contents, dtype=pl.UInt64)), on=["table", "did"])
        .join(of_files.lazy(), on="table")
        .with_columns(
            window=pl.col("start").dt.strftime(granularity.key_format).fill_null(UNDATED),
            pack=pl.lit(pack),
            number=pl.lit(number),
        )
        .sort("place", "did", "window")
        .select(pl.col(name).cast(kind) for name, kind in INDEX_SCHEMA.items())
        .collect(engine="in-memory")
    )


def stable_number(text: str) -> int:
    """Return 64 bits that stand for a text, on every machine and for good."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
