"""Entries in a column of local Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster.dids.sources.files import (
    Columns,
    SourceFile,
    files_stamp,
    matching_files,
    read_parquet,
)
from backfill_dagster.dids.sources.tabular import TabularEntries

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from backfill_dagster.config.sources import ParquetSource
    from backfill_dagster.dids.entries import SourceAccess


class ParquetEntries(TabularEntries):
    """A column of a Parquet file, or of all that a glob names, in the order of their names."""

    def __init__(self, config: ParquetSource, field: str, column: str) -> None:
        super().__init__(field, config.column or column)
        self._path = Path(config.path)

    def read(self, columns: Columns, access: SourceAccess) -> Iterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield columns of the files, one after the other."""
        for file in matching_files(self._path, self.field):
            yield from read_parquet(file, columns)

    def describe(self) -> str:
        """Name the path or glob."""
        return SourceFile.local(self._path, self.field).place

    def stamp(self) -> str:
        """Return the column, and the files' names, sizes and times."""
        files = matching_files(self._path, self.field)
        return repr((self._columns.names, files_stamp(file.path for file in files)))
