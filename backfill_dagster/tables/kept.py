"""What the final files hold of each account, counted by reading them again."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import INSTANT, TABLE_BY_NAME, TABLES
from backfill_dagster.storage import RowGroupWriter, arrow_table
from backfill_dagster.tables.build import table_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from backfill_dagster.dids.did_ranges import DidRange
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
    for count in _counts(storage, table):
        counted.append(count)
        # As many as are added up already, so that none is added up again and again.
        if sum(count.height for count in counted) > max(_COUNTS_AT_ONCE, total.height):
            total, counted = add_kept([total, *counted]), []
    return add_kept([total, *counted])


def store_kept(
    storage: StudyStorage, tables: Sequence[str], ranges: Sequence[DidRange], folder: Path
) -> Path:
    """Write the same of some tables to a file of a lent folder, a row group for each of these ranges; return its path.

    The ranges follow each other and leave nothing out. No more than the accounts of one is held.
    """
    path = folder / f"{tables[0]}.kept"
    schema = arrow_table(KEPT_SCHEMA.to_frame()).schema
    with DealtRows(path.with_suffix(".dealt"), KEPT_SCHEMA) as dealt:
        for counts in _some_at_once(count for table in tables for count in _counts(storage, table)):
            for dids, some in dealt_by_range(counts, ranges):
                dealt.add(dids, some)
        with RowGroupWriter(path, schema, dictionary=()) as file:
            for dids in ranges:
                file.write(arrow_table(add_kept([dealt.of(dids)])))
    return path


@contextmanager
def stored_kept(paths: Iterable[Path]) -> Iterator[Callable[[int], pl.DataFrame]]:
    """Lend what these files hold, all together, of the accounts of the range with a place (KEPT_SCHEMA)."""
    with ExitStack() as stack:
        files = [stack.enter_context(pq.ParquetFile(path)) for path in paths]

        def kept(place: int) -> pl.DataFrame:
            groups = (pl.from_arrow(file.read_row_group(place)) for file in files)
            return add_kept(pl.DataFrame(group, schema=KEPT_SCHEMA) for group in groups)

        yield kept


def _some_at_once(counts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Put counts of single files together: each has few of the accounts of a range."""
    gathered: list[pl.DataFrame] = []
    for count in counts:
        gathered.append(count)
        if sum(each.height for each in gathered) > _COUNTS_AT_ONCE:
            yield add_kept([KEPT_SCHEMA.to_frame(), *gathered])
            gathered = []
    yield add_kept([KEPT_SCHEMA.to_frame(), *gathered])


def _counts(storage: StudyStorage, table: str) -> Iterator[pl.DataFrame]:
    """Yield what each file of a table holds of each account, in the columns that are the table's."""
    for key in table_keys(storage, table):
        rows = storage.scan([key], TABLE_BY_NAME[table].schema)
        yield from storage.collect([_count(rows, table)], [key], engine="streaming")


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
