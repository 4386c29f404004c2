"""Entries that stand in the YAML itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.entries import BATCH_ROWS, as_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backfill_dagster.config.sources import InlineSource
    from backfill_dagster.dids.entries import SourceAccess


class InlineEntries:
    """Entries that stand in the YAML itself."""

    needs_network = False

    def __init__(self, config: InlineSource, field: str) -> None:
        self._listed = config.dids or config.uris or ()
        self._field = f"{field}.{'uris' if config.dids is None else 'dids'}"

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield the entries in their order."""
        for batch in pl.Series(self._listed, dtype=pl.String).to_frame("entry").iter_slices(BATCH_ROWS):
            yield as_entries(batch.to_series())

    def describe(self) -> str:
        """Name the field that they stand in."""
        return self._field

    def stamp(self) -> str:
        """Return the entries themselves."""
        return repr(self._listed)
