"""Entries in what another backfill has found or collected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.sources.files import (
    Columns,
    SourceFile,
    reading,
    table_batches,
)
from backfill_dagster.dids.sources.tabular import TabularEntries
from backfill_dagster.errors import SourceError
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.sources import AssetSource
    from backfill_dagster.dids.entries import SourceAccess
    from backfill_dagster.stores.location import Location


# Of assets that are tables by time: those of records, and those made of them.
_FOLDERS = ("tables", "derived")


class AssetEntries(TabularEntries):
    """A column of the file of another backfill's asset, or of the files of one of its tables, in their order."""

    def __init__(self, config: AssetSource, field: str, column: str, storage: Location) -> None:
        super().__init__(field, config.column or column)
        self._config = config
        self._storage = StudyStorage((config.storage or storage) / config.backfill)
        # What a row must have at least, by column; 1 is what every row has.
        wanted = {"interactions": config.min_interactions, "accounts": config.min_accounts}
        self._least = {name: least for name, least in wanted.items() if least > 1}

    def read(self, columns: Columns, access: SourceAccess) -> Iterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield columns of the rows that have enough interactions and accounts."""
        for key in self._keys():
            where = self._storage.where(key)
            file = SourceFile(Path(where), self.field, self.describe(), where)
            with reading(file, "Parquet"):
                table = self._storage.scan_as_it_is(key)
                there = table.collect_schema().names()
                for name, least in self._least.items():
                    if name not in there:
                        raise SourceError(
                            f"{self.field}.min_{name} = {least}: {where} has no column {name!r} to go by; its "
                            f"columns are {', '.join(map(repr, there))}"
                        )
                enough = [pl.col(name) >= least for name, least in self._least.items()]
                yield from table_batches(table.filter(enough) if enough else table, file, columns)

    def describe(self) -> str:
        """Name the asset."""
        return f"{self.field}.asset = {self._config.asset!r}"

    def stamp(self) -> str:
        """Return what is asked of the asset, and its files' names, sizes and times."""
        files = [
            (self._storage.where(key), self._storage.size(key), self._storage.version(key))
            for key in self._keys()
        ]
        return repr((self._columns.names, sorted(self._least.items()), files))

    def _keys(self) -> list[str]:
        """Return the keys of the asset's files; raises SourceError if there is none yet."""
        whole = f"{self._config.asset}.parquet"
        if self._storage.exists(whole):
            return [whole]
        parts = [key for folder in _FOLDERS for key in self._storage.keys(f"{folder}/{self._config.asset}")]
        if not parts:
            raise SourceError(
                f"{self.describe()}: backfill {self._config.backfill!r} has no such asset yet; materialize "
                f"{self._config.backfill}/{self._config.asset} first (looked for {self._storage.where(whole)})"
            )
        return parts
