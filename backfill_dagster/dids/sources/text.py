"""Entries in a text file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dids.sources.files import Columns, SourceFile, files_stamp, read_text, require_file
from backfill_dagster.dids.sources.tabular import TabularEntries

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from backfill_dagster.config.sources import TextSource
    from backfill_dagster.dids.entries import SourceAccess


class TextEntries(TabularEntries):
    """The lines of a text file that are neither empty nor a comment."""

    def __init__(self, config: TextSource, field: str, column: str) -> None:
        super().__init__(field, column)
        self._file = SourceFile.local(config.path, field)

    def read(self, columns: Columns, access: SourceAccess) -> Iterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield the lines as the one column that is asked for."""
        return read_text(self._file, columns)

    def describe(self) -> str:
        """Name the file."""
        return self._file.place

    def stamp(self) -> str:
        """Return the file's name, size and time."""
        require_file(self._file)
        return repr(files_stamp([self._file.path]))
