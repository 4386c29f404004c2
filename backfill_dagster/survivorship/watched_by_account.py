"""The days for which each account's records were watched, and how many of them went, by collection.

Of all accounts and collections these are more than memory is to hold, and what adds to one comes from many packs: so
they are dealt out in scratch files, by ranges of DIDs until all are in, and then by collections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import polars as pl

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from backfill_dagster.dids.did_ranges import DidRange

_SUMS_SCHEMA = pl.Schema({"collection": pl.String(), "days": pl.Float64(), "deleted": pl.Float64()})
_PARTS_SCHEMA = pl.Schema({"did": pl.String(), **_SUMS_SCHEMA})
_OF_ACCOUNT = ["did", "collection"]
# Lots of collections: whoever makes one can give each record its own.
_LOTS = 256
_LOT = "_lot"
# Rows that are dealt out at once: many small pieces take longer; some 60 bytes each.
_ROWS_AT_ONCE = 100_000


class WatchedByAccount:
    """Sums: first all is added, then they are read. A context manager; its files stay in `scratch`.

    Raises StorageError.
    """

    def __init__(self, scratch: Path, ranges: Sequence[DidRange]) -> None:
        """Begin with nothing; the ranges of DIDs follow each other, and one is held at a time."""
        self._ranges = ranges
        self._parts = DealtRows(scratch / "account_parts.arrow", _PARTS_SCHEMA)
        self._sums = DealtRows(scratch / "account_sums.arrow", _SUMS_SCHEMA)
        self._waiting: list[pl.DataFrame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._parts.__exit__(kind, error, traceback)
        self._sums.__exit__(kind, error, traceback)

    def add(self, rows: pl.DataFrame) -> None:
        """Add to the sums: `did, collection, days, deleted`."""
        self._waiting.append(added_up([rows], _OF_ACCOUNT))
        if sum(part.height for part in self._waiting) >= _ROWS_AT_ONCE:
            self._deal_out()

    def by_collection(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield each collection, in no order, with the `days` and `deleted` of its accounts, in the order of DIDs."""
        if not self._sums.rows_of:
            self._sum_up()
        for lot in self._sums.rows_of:
            of_lot = self._sums.of(lot).partition_by("collection", as_dict=True, include_key=False)
            yield from ((str(collection), own) for (collection,), own in of_lot.items())

    def _deal_out(self) -> None:
        if self._waiting:
            for dids, some in dealt_by_range(pl.concat(self._waiting), self._ranges):
                self._parts.add(dids, some)
        self._waiting = []

    def _sum_up(self) -> None:
        self._deal_out()
        for dids in self._ranges:
            sums = added_up([self._parts.of(dids)], _OF_ACCOUNT).sort(_OF_ACCOUNT)
            numbered = sums.with_columns((pl.col("collection").hash() % _LOTS).alias(_LOT))
            for (lot,), some in numbered.partition_by(_LOT, as_dict=True, include_key=False).items():
                self._sums.add(lot, some)


def added_up(parts: Sequence[pl.DataFrame], by: list[str]) -> pl.DataFrame:
    """Return the sums of `days` and `deleted` by these columns."""
    # In an order of its own the same numbers can have another sum.
    rows = pl.concat(part.select(*by, "days", "deleted") for part in parts).sort(*by, "days")
    return rows.group_by(by, maintain_order=True).agg(pl.col("days", "deleted").sum())
