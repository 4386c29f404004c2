"""Everyone who has records of a collection, as a relay lists them."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from backfill_dagster.dids.sources.listed import connections_of, listed_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import polars as pl

    from backfill_dagster.config.sources import CollectionSource
    from backfill_dagster.dids.entries import SourceAccess


class CollectionEntries:
    """The accounts that a relay lists by `com.atproto.sync.listReposByCollection`."""

    needs_network = True

    def __init__(self, source: CollectionSource, field: str) -> None:
        self._source = source
        self._field = field

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield a batch per page; raises SourceError if the list cannot be had whole."""
        listed = listed_entries(
            connections_of(access),
            self._source.relay,
            "com.atproto.sync.listReposByCollection",
            {"collection": self._source.collection},
            f"{self._field}.collection",
        )
        async with aclosing(listed) as batches:
            async for batch in batches:
                yield batch

    def describe(self) -> str:
        """Name the source for a message."""
        return f"{self._field}.collection = {self._source.collection}"

    def stamp(self) -> None:
        """Nothing tells without asking whether a relay's list has changed."""
