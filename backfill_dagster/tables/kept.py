"""What the final files hold of each account, counted by reading them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import INSTANT, TABLE_BY_NAME, TABLES
from backfill_dagster.tables.build import table_keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.storage import StudyStorage

_NUMBERS = (*TABLES, "undated", "with_issues")
KEPT_SCHEMA = pl.Schema(
    {
        "did": pl.String(),
        # Rows in the table of this name; of all of them, how many are undated or have issues.
        **dict.fromkeys(_NUMBERS, pl.UInt32()),
        # Among the dates that can be believed.
        "first": INSTANT,
        "last": INSTANT,
    }
)
# Counts of single files that are held, at least, before they are added up.
_COUNTS_AT_ONCE = 50_000


def count_kept(storage: StudyStorage, table: str) -> pl.DataFrame:
    """Return what the final files of a table hold of each account, undated rows included (KEPT_SCHEMA); unsorted.

    Memory grows with accounts, not with rows: one file is read at a time, and that in pieces.
    """
    total = KEPT_SCHEMA.to_frame()
    counted: list[pl.DataFrame] = []
    for key in table_keys(storage, table):
        rows = storage.scan([key], TABLE_BY_NAME[table].schema)
        counted += storage.collect([_count(rows, table)], [key], engine="streaming")
        # As many as are added up already, so that none is added up again and again.
        if sum(count.height for count in counted) > max(_COUNTS_AT_ONCE, total.height):
            total, counted = add_kept([total, *counted]), []
    return add_kept([total, *counted])


def add_kept(counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Add up counts of the same accounts (KEPT_SCHEMA); in those of single tables the others' columns may lack."""
    return (
        pl.concat(counts, how="diagonal")
        .group_by("did")
        .agg(pl.col(_NUMBERS).sum(), pl.col("first").min(), pl.col("last").max())
    )


def _count(rows: pl.LazyFrame, table: str) -> pl.LazyFrame:
    undated = is_undated(pl.col("date_quality"))
    believed = pl.when(~undated).then("created_at")
    return rows.group_by("did").agg(
        pl.len().alias(table),
        undated=undated.sum(),
        with_issues=(pl.col("issues").list.len() > 0).sum(),
        first=believed.min(),
        last=believed.max(),
    )
