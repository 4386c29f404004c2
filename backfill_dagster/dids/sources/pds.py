"""Everyone on given hosts, as these list them."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from backfill_dagster.dids.sources.listed import connections_of, listed_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import polars as pl

    from backfill_dagster.config.sources import PdsSource
    from backfill_dagster.dids.entries import SourceAccess


class PdsEntries:
    """The accounts that hosts list by `com.atproto.sync.listRepos`, host by host.

    A host lists also accounts that it serves no more: those that are deactivated there because they have moved on.
    """

    needs_network = True

    def __init__(self, source: PdsSource, field: str) -> None:
        self._source = source
        self._field = field

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield a batch per page; raises SourceError naming the host whose list cannot be had whole."""
        connections = connections_of(access)
        for origin in self._source.hosts:
            listed = listed_entries(
                connections, origin, "com.atproto.sync.listRepos", {}, f"{self._field}.hosts"
            )
            async with aclosing(listed) as batches:
                async for batch in batches:
                    yield batch

    def describe(self) -> str:
        """Name the source for a message."""
        return f"{self._field}.hosts = {', '.join(self._source.hosts)}"

    def stamp(self) -> None:
        """Nothing tells without asking whether a host's list has changed."""
