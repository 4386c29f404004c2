"""The index of a pack's conversion: how many rows each account has in each window of each table.

It tells which windows a changed pack concerns, and which files a window is made of, without a look at the records.
A pack never changes, so that its rows in a window have an identity: their `content`, a number that stands for the
account, the converted file and the settings that it was converted with.
"""

from __future__ import annotations

import hashlib

import polars as pl

from backfill_dagster.records.windows import UNDATED, Granularity
from backfill_dagster.storage import partition_folder

INDEX_SCHEMA = pl.Schema(
    {
        "did": pl.String(),
        "pack": pl.String(),
        "number": pl.Int32(),  # of the blocks file within the pack, and so of the converted file
        "table": pl.String(),
        "window": pl.String(),  # its key, or `undated`
        "rows": pl.Int64(),
        "bytes": pl.Int64(),  # of the converted file
        "content": pl.UInt64(),
    }
)


def index_key(pds_host: str, pack: str) -> str:
    """Return where the index of a pack is stored."""
    return f"records/{partition_folder(pds_host)}/windows/{pack}.parquet"


def index_rows(
    rows: pl.DataFrame,
    *,
    pack: str,
    number: int,
    table: str,
    size: int,
    fingerprint: str,
    granularity: Granularity,
) -> pl.DataFrame:
    """Return the index (INDEX_SCHEMA) of one converted file of `size` bytes."""
    counted = rows.group_by("did", granularity.start_of_row().alias("start")).agg(rows=pl.len())
    dids = counted["did"].unique()
    contents = [stable_number(f"{pack}-{number} {table} {did} {fingerprint}") for did in dids]
    known = pl.DataFrame({"did": dids, "content": pl.Series(contents, dtype=pl.UInt64)})
    return (
        counted.join(known, on="did")
        .with_columns(
            window=pl.col("start").dt.strftime(granularity.key_format).fill_null(UNDATED),
            pack=pl.lit(pack),
            number=pl.lit(number),
            table=pl.lit(table),
            bytes=pl.lit(size),
        )
        .select(INDEX_SCHEMA.names())
        .cast(INDEX_SCHEMA)
        .sort("did", "window")
    )


def stable_number(text: str) -> int:
    """Return 64 bits that stand for a text, on every machine and for good."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
