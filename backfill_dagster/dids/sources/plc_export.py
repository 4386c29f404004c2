"""Accounts by the date of their creation, from the export of the study's PLC directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dids.entries import BATCH_ROWS, as_entries
from backfill_dagster.dids.sources.listed import connections_of
from backfill_dagster.directory.export_reader import ExportReader, young_enough
from backfill_dagster.errors import DirectoryUnreachableError, SourceError
from backfill_dagster.network.patience import RunOverError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import polars as pl

    from backfill_dagster.config.sources import PlcExportSource
    from backfill_dagster.dids.entries import SourceAccess


class PlcExportEntries:
    """Every did:plc whose first operation was accepted in a period, whatever has become of it, oldest first."""

    needs_network = True

    def __init__(self, source: PlcExportSource, field: str) -> None:
        self._source = source
        self._field = field

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield the accounts, once the export's copy reaches to the end of the period, or is young enough.

        Raises SourceError if it cannot be brought so far, and StorageError.
        """
        connections = connections_of(access)
        reader = ExportReader(connections)
        needed, end = young_enough(connections.network.plc_export.max_age_hours), self._source.created_to
        is_past = end is not None and end <= needed
        if end is not None and is_past:
            needed = end
        try:
            reached = await reader.bring_up_to(needed, stop=is_past)
        except (DirectoryUnreachableError, RunOverError) as error:
            raise SourceError(f"{self.describe()}: {error}") from error
        if reached.until < needed:
            raise SourceError(
                f"{self.describe()}: the export can only be had until {reached.until:%Y-%m-%d %H:%M:%S}, and the list "
                "would be silently short; raise backfill.network.plc_export.max_age_hours, or end the period earlier"
            )
        for dids in reader.copy.created(self._source.created_from, end):
            for batch in dids.to_frame().iter_slices(BATCH_ROWS):
                yield as_entries(batch["did"])

    def describe(self) -> str:
        """Name the source for a message."""
        return self._field

    def stamp(self) -> None:
        """Nothing tells without asking whether there are new accounts."""
