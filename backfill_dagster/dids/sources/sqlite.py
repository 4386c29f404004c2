"""Entries that a query gives, asked of an SQLite file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dids.sources.files import (
    Columns,
    Query,
    SourceFile,
    files_stamp,
    read_sqlite,
    require_file,
    write_ahead_log,
)
from backfill_dagster.dids.sources.tabular import TabularEntries

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from backfill_dagster.config.sources import SqliteSource
    from backfill_dagster.dids.entries import SourceAccess


class SqliteEntries(TabularEntries):
    """A column of what a query gives; the file is opened for reading only."""

    def __init__(self, config: SqliteSource, field: str, column: str) -> None:
        super().__init__(field, config.column or column)
        self._file = SourceFile.local(config.path, field)
        self._query = Query(config.query, config.parameters)

    def read(self, columns: Columns, access: SourceAccess) -> Iterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield columns of the query's result."""
        return read_sqlite(self._file, self._query, columns)

    def describe(self) -> str:
        """Name the file."""
        return self._file.place

    def stamp(self) -> str:
        """Return the query, and the file's name, size and time."""
        require_file(self._file)
        # What is committed in write-ahead mode may stand in the log alone.
        files = [self._file.path, write_ahead_log(self._file.path)]
        return repr((self._columns.names, self._query, files_stamp(files)))
