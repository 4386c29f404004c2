"""Trees of the previous system, made by hand from its description: all columns are texts, and any may be missing."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from backfill_dagster.legacy.tables import LEGACY_INPUTS

ALICE, BOB, CAROL = (f"did:plc:{letter * 24}" for letter in "abc")
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
BLOB = "bafkreibme22gw2h7y2h7tg2fhqotaqjucnbc24deqo72b6mkl2egezxhvy"
COLLECTIONS = {
    "post": "app.bsky.feed.post",
    "reply": "app.bsky.feed.post",
    "like": "app.bsky.feed.like",
    "repost": "app.bsky.feed.repost",
    "follow": "app.bsky.graph.follow",
    "block": "app.bsky.graph.block",
}
# Two of microseconds that lie a minute after 2024-10-10T12:00:00Z.
WRITTEN = datetime(2025, 1, 1, tzinfo=UTC)


def row(kind: str, rkey: str, did: str = ALICE, **values: str | None) -> dict[str, str | None]:
    """Return a row as the previous system wrote it."""
    return {
        **dict.fromkeys(LEGACY_INPUTS),
        "uri": f"at://{did}/{COLLECTIONS[kind]}/{rkey}",
        "cid": CID,
        "author": did,
        "py_type": COLLECTIONS[kind],
        "created_at": "2024-10-10T12:00:00.000Z",
        "record_type": kind,
        "synctimestamp": "2024-10-10-12:00:00",
        "partition_date": "2024-10-10",
        **values,
    }


def write(
    root: Path,
    kind: str,
    rows: list[dict[str, Any]],
    *,
    layer: str = "active",
    day: str = "2024-10-10",
    name: str = "0.parquet",
    schema: dict[str, pl.DataType] | None = None,
) -> Path:
    """Write a file of a tree; its columns are those of the rows, as texts if no types are given."""
    path = root / f"raw_sync/create/{kind}/{layer}/partition_date={day}/{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for one in rows for column in one))
    types = {column: (schema or {}).get(column, pl.String()) for column in columns}
    pl.DataFrame(
        [[one.get(column) for column in columns] for one in rows], schema=types, orient="row"
    ).write_parquet(path)
    os.utime(path, (WRITTEN.timestamp(), WRITTEN.timestamp()))
    return path


def imported(folder: Path, table: str) -> pl.DataFrame:
    """Return all rows of an imported table, dated or not, by URI."""
    files = [
        *folder.glob(f"legacy/{table}/month=*/*.parquet"),
        *folder.glob(f"legacy/undated/{table}/*.parquet"),
    ]
    return pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files]).sort("uri")
