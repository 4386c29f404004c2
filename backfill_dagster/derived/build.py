"""Derived tables on disk: by time window, in parts, written again only where what they are made of has changed.

As with the record tables, a ledger says what each window's files were made of. What it is made of can change without
changing a window: then its files are the same bytes, and the window does not count as rebuilt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar

import polars as pl

from backfill_dagster import columns
from backfill_dagster.records.window_index import stable_number
from backfill_dagster.tables.build import PartitionReport
from backfill_dagster.tables.ledger import LEDGER_SCHEMA, note_built, read_built

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.columns import Column
    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StudyStorage

FOLDER = "derived"
# The column of a lot's rows that says which window they stand in.
WINDOW = "_window"


class Derivation(ABC):
    """How one derived table is made; `key` are the columns that tell a row from all others of the table."""

    name: ClassVar[str]
    description: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    key: ClassVar[tuple[str, ...]]
    covers: ClassVar[tuple[pl.Expr, tuple[str, ...]] | None] = None
    """What, of a window's rows, is the number of rows that which tables have in it; None if nothing is."""

    @abstractmethod
    def identity(self, window: str) -> str:
        """Return what is another whenever the window's rows may be."""

    @abstractmethod
    def lots(self, windows: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the rows of these windows in frames of bounded size, sorted, with their window as `_window`.

        Each comes with the number of its lot; of a window and a lot there is one frame at most. How many lots there
        are, and how the rows are dealt out to them, is the same whichever windows are asked for.
        """


def schema_of(derivation: Derivation | type[Derivation]) -> pl.Schema:
    """Return a derived table's columns in order, with their types."""
    return columns.schema_of(derivation.columns)


class DerivedTable:
    """One derived table of a study; `windows` are the keys of all windows that the study has."""

    def __init__(
        self,
        storage: StudyStorage,
        derivation: Derivation,
        granularity: Granularity,
        windows: Sequence[str],
    ) -> None:
        self._storage = storage
        self._derivation = derivation
        self._granularity = granularity
        self._windows = windows

    def folder(self, window: str) -> str:
        """Return the key of a window's folder."""
        return f"{FOLDER}/{self._derivation.name}/{self._granularity.folder(window)}"

    def stale(self, windows: Sequence[str]) -> list[str]:
        """Return those of these windows whose files are not known to be what they ought to be."""
        told = self._told()
        return [window for window in windows if not self._is_current(window, told.get(self.folder(window)))]

    def build(self, windows: Sequence[str], *, again: bool = False) -> list[PartitionReport]:
        """Build those of these windows that are stale, or all of them `again`; report each.

        What lies in folders of windows that the study does not have is removed.
        """
        self._remove_strangers()
        stale = list(windows) if again else self.stale(windows)
        changed = self._rebuild(stale) if stale else set()
        told = self._told()
        return [
            self._report(window, told.get(self.folder(window), []), window in changed) for window in windows
        ]

    def forget(self, windows: Sequence[str]) -> None:
        """Take these windows for not built, whatever their files are."""
        if windows:
            self._note([self.folder(window) for window in windows], [])

    def _rebuild(self, stale: Sequence[str]) -> set[str]:
        """Write the files of these windows; return those whose files are others than before."""
        folders = {window: self.folder(window) for window in stale}
        numbers = {window: stable_number(self._derivation.identity(window)) for window in stale}
        known = self._told()
        self._note(list(folders.values()), [])
        entries: list[tuple[str, str | None, int, int, int]] = []
        written: dict[str, set[str]] = defaultdict(set)
        # What a run wrote that was ended before it could tell of it is news as well.
        changed = {window for window, folder in folders.items() if folder not in known}
        for lot, rows in self._derivation.lots(stale):
            by_window = rows.partition_by(WINDOW, as_dict=True, include_key=False)
            for (window,), part in sorted(by_window.items()):
                name = f"part-{lot:05d}.parquet"
                key = f"{folders[window]}/{name}"
                before = self._storage.sha256(key) if self._storage.exists(key) else None
                stored = self._storage.write(key, part.match_to_schema(schema_of(self._derivation)))
                if stored.sha256 != before:
                    changed.add(window)
                written[window].add(key)
                entries.append((folders[window], name, numbers[window], stored.rows, stored.bytes))
        for window, folder in folders.items():
            others = set(self._storage.keys(folder)) - written[window]
            for key in others:
                self._storage.remove(key)
            if others:
                changed.add(window)
            if not written[window]:
                entries.append((folder, None, numbers[window], 0, 0))
        self._note(list(folders.values()), entries)
        return changed

    def _is_current(self, window: str, entries: list[tuple[str | None, int, int, int]] | None) -> bool:
        if entries is None:
            return False
        number, folder = stable_number(self._derivation.identity(window)), self.folder(window)
        sizes = {file.key.rpartition("/")[2]: file.bytes for file in self._storage.listed(folder)}
        told = {part: size for part, _, _, size in entries if part is not None}
        return sizes == told and all(digest == number for _, digest, _, _ in entries)

    def _told(self) -> dict[str, list[tuple[str | None, int, int, int]]]:
        """Return what the ledger says of each folder's files: name, digest, rows and bytes."""
        told: dict[str, list[tuple[str | None, int, int, int]]] = {}
        for folder, *entry in read_built(self._storage, self._derivation.name).iter_rows():
            told.setdefault(folder, []).append(tuple(entry))
        return told

    def _report(
        self, window: str, entries: list[tuple[str | None, int, int, int]], rebuilt: bool
    ) -> PartitionReport:
        return PartitionReport(
            window,
            rows=sum(rows for _, _, rows, _ in entries),
            bytes=sum(size for *_, size in entries),
            parts=sum(part is not None for part, *_ in entries),
            rebuilt=rebuilt,
        )

    def _note(self, folders: Sequence[str], entries: Sequence[tuple[str, str | None, int, int, int]]) -> None:
        told = pl.DataFrame(entries, schema=LEDGER_SCHEMA, orient="row")
        note_built(self._storage, self._derivation.name, folders, told)

    def _remove_strangers(self) -> None:
        own = {self.folder(window) for window in self._windows}
        keys = self._storage.keys(f"{FOLDER}/{self._derivation.name}")
        strangers = [key for key in keys if key.rpartition("/")[0] not in own]
        folders = {folder for folder in self._told() if folder not in own}
        if strangers or folders:
            self._note([*folders, *(key.rpartition("/")[0] for key in strangers)], [])
        for key in strangers:
            self._storage.remove(key)
