"""The record tables as they are built: their rows, and what tells whether they have changed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.records.windows import UNDATED
from backfill_dagster.tables.ledger import read_built

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import polars as pl

    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StudyStorage


class StoredTables:
    """The built tables of a study, as they are when this is made; `names` are those that it has."""

    def __init__(self, storage: StudyStorage, granularity: Granularity, names: Sequence[str]) -> None:
        self.storage = storage
        self.granularity = granularity
        self.names = tuple(names)
        self._built = {table: _by_folder(read_built(storage, table)) for table in names}

    def identity(self, tables: Iterable[str], windows: Iterable[str] | None = None) -> str:
        """Return what is another whenever the rows of these tables are, in these windows or in all and the undated."""
        digest = hashlib.sha256()
        for table in self.had(tables):
            built = self._built[table]
            folders = sorted(built) if windows is None else self._folders(table, windows)
            # A window without rows changes nothing: there is a new one whenever time goes on.
            filled = [
                (folder, built[folder])
                for folder in folders
                if any(file[2] for file in built.get(folder, ()))
            ]
            digest.update(repr((table, filled)).encode())
        return digest.hexdigest()

    def had(self, tables: Iterable[str]) -> list[str]:
        """Return those of these tables that the study has."""
        return [table for table in tables if table in self.names]

    def undated_keys(self, table: str) -> list[str]:
        """Return the files of a table's undated rows."""
        return self.keys(table, [UNDATED])

    def keys(self, table: str, windows: Iterable[str] | None = None) -> list[str]:
        """Return the files of a table in windows, or in all and undated; none if the study has no such table."""
        if table not in self.names:
            return []
        if windows is None:
            return [*self.storage.keys(f"tables/{table}"), *self.storage.keys(f"{UNDATED}/{table}")]
        return [key for folder in self._folders(table, windows) for key in self.storage.keys(folder)]

    def scan(self, table: str, keys: Sequence[str], columns: Sequence[str]) -> pl.LazyFrame:
        """Return these columns of these files of a table, lazily."""
        return self.storage.scan(keys, TABLE_BY_NAME[table].schema).select(columns)

    def rows(self, tables: Iterable[str], windows: Iterable[str] | None = None) -> int:
        """Return how many rows these tables hold, in these windows or in all and the undated."""
        total = 0
        for table in self.had(tables):
            built = self._built[table]
            for folder in built if windows is None else self._folders(table, windows):
                total += sum(rows for _, _, rows in built.get(folder, ()))
        return total

    def _folders(self, table: str, windows: Iterable[str]) -> list[str]:
        return [
            f"{UNDATED}/{table}" if window == UNDATED else f"tables/{table}/{self.granularity.folder(window)}"
            for window in windows
        ]


def _by_folder(built: pl.DataFrame) -> dict[str, list[tuple[str | None, int, int]]]:
    """Return the ledger's entries by folder: name, digest and rows of each file."""
    folders: dict[str, list[tuple[str | None, int, int]]] = defaultdict(list)
    for folder, part, digest, rows in built.sort("folder", "part").drop("bytes").iter_rows():
        folders[folder].append((part, digest, rows))
    return dict(folders)
