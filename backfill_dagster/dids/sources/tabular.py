"""Sources that are files, or are made of files, with one or several columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from backfill_dagster.dids.entries import as_entries
from backfill_dagster.dids.sources.files import Columns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import polars as pl

    from backfill_dagster.dids.entries import SourceAccess


class TabularEntries(ABC):
    """A source that can be read column by column; `column` is the one with its entries."""

    needs_network = False

    def __init__(self, field: str, column: str) -> None:
        self.field = field
        self._columns = Columns((column,), f"{field}.column")

    @abstractmethod
    def read(self, columns: Columns, access: SourceAccess) -> Iterator[pl.DataFrame]:
        """Yield columns as text, in batches of at most BATCH_ROWS; null where empty. Raises SourceError."""

    @abstractmethod
    def describe(self) -> str:
        """Name the source for a message."""

    @abstractmethod
    def stamp(self) -> str:
        """Return what changes whenever the source may have changed. Raises SourceError if it is not there."""

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield the entries in their order."""
        for batch in self.read(self._columns, access):
            yield as_entries(batch.to_series())
