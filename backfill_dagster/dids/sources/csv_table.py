"""Entries in a column of a CSV file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dids.sources.files import Columns, SourceFile, files_stamp, read_csv, require_file
from backfill_dagster.dids.sources.tabular import TabularEntries

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from backfill_dagster.config.sources import CsvSource
    from backfill_dagster.dids.entries import SourceAccess


class CsvEntries(TabularEntries):
    """A column of a CSV file with a header."""

    def __init__(self, config: CsvSource, field: str, column: str) -> None:
        super().__init__(field, config.column or column)
        self._file = SourceFile.local(config.path, field)

    def read(self, columns: Columns, access: SourceAccess) -> Iterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield columns of the file."""
        return read_csv(self._file, columns)

    def describe(self) -> str:
        """Name the file."""
        return self._file.place

    def stamp(self) -> str:
        """Return the column, and the file's name, size and time."""
        require_file(self._file)
        return repr((self._columns.names, files_stamp([self._file.path])))
