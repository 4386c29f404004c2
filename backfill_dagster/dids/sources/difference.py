"""What is in one source and not in another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dids.entries import counted_entries
from backfill_dagster.dids.exclusion import read_exclusion
from backfill_dagster.dids.sources.union import joint_stamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import polars as pl

    from backfill_dagster.dids.entries import EntrySource, SourceAccess


class ExceptEntries:
    """The entries of one source; those that another has too are rejected as `excluded`.

    The entries of the other are all in memory while this is read.
    """

    def __init__(self, source: EntrySource, without: EntrySource, field: str) -> None:
        self._source = source
        self._without = without
        self._field = field

    @property
    def needs_network(self) -> bool:
        """Tell whether either of them does."""
        return self._source.needs_network or self._without.needs_network

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield the entries of the one source."""
        excluded = await read_exclusion(self._without, f"{self._field}.without", access)
        async for batch in counted_entries(self._source, f"{self._field}.source", access):
            yield excluded.withhold(batch)

    def describe(self) -> str:
        """Name the source that is left of."""
        return self._source.describe()

    def stamp(self) -> str | None:
        """Return what changes whenever one of them may have changed; None if one cannot tell."""
        return joint_stamp([self._source, self._without])
