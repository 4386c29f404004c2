"""The tables: a study's records by type and time window of creation, made from the snapshots of its accounts.

Rows come from stored conversions of packs; an account's rows are taken from the one pack that holds its snapshot,
so that a record stands in a table once. A window's rows are dealt out to files of bounded size, its parts, by the
converted files that they come from. So a file is a function of those of its converted files that have rows in it, and
of nothing else, and is written again only if they change.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import polars as pl

from backfill_dagster.records.conversion import records_key
from backfill_dagster.records.tables import SCHEMA_VERSION, TABLES
from backfill_dagster.records.window_index import stable_number
from backfill_dagster.records.windows import UNDATED
from backfill_dagster.tables.contents import TableContents, WindowPart
from backfill_dagster.tables.ledger import (
    LEDGER_SCHEMA,
    ledger_key,
    note_built,
    read_built,
)
from backfill_dagster.tables.parts import Part, WindowFile, WrittenPart, read_together, write_part

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from pathlib import Path

    from backfill_dagster.monitoring.work_cost import WorkCost
    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StudyStorage

    Workers: TypeAlias = Callable[[], AbstractContextManager[Executor]]

# What is read by this process itself: less than worker processes are worth, and than they need memory.
_SMALL_BYTES = 2 * 2**20
# Parts that are handed to worker processes before they are done with the first of them: enough that none waits.
_PARTS_AHEAD = 4 * (os.cpu_count() or 1)
# Raised whenever the same records would make another file.
LAYOUT_VERSION = 1
# One row of the ledger: folder, name, digest, rows, bytes.
_Entry: TypeAlias = tuple[str, str | None, int, int, int]
# Of a part without rows; also in every other digest.
_EMPTY_DIGEST = stable_number(f"{LAYOUT_VERSION} {SCHEMA_VERSION}")


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """What one window of a table holds (or `undated`): rows, bytes on disk, files; and whether that is new."""

    partition: str
    rows: int
    bytes: int
    parts: int
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """How a window's files were found: the ledger's words on those that are right, by name; and those too many."""

    window: str
    sound: dict[str, tuple[int, int, int]]
    others: list[str]
    current: bool


class WindowedTable:
    """One table of a study, and what belongs in it now.

    `windows` are the keys of all windows that the study has. Wherever a window is asked for, it may also be
    `undated`.
    """

    def __init__(
        self,
        storage: StudyStorage,
        table: str,
        granularity: Granularity,
        windows: Sequence[str],
        contents: TableContents,
    ) -> None:
        self._storage = storage
        self._table = table
        self._granularity = granularity
        self._windows = windows
        self._contents = contents

    @property
    def name(self) -> str:
        """The table's name."""
        return self._table

    def stale(self, windows: Iterable[str]) -> list[str]:
        """Return those of these windows whose files are not what they ought to be; reads no records."""
        return [found.window for found in self._look_at(windows) if not found.current]

    def build(
        self,
        windows: Sequence[str],
        *,
        again: bool = False,
        workers: Workers | None = None,
        on_cost: Callable[[WorkCost], None] = lambda _: None,
    ) -> list[PartitionReport]:
        """Build those of these windows that are stale, or all of them `again`; report each.

        What lies in folders of windows that the study does not have is removed. If there is much to do, it is done by
        `workers`, which are asked for then. `on_cost` is told what each piece of the work took.

        Raises StorageError if the converted records are not those of which their index tells.
        """
        [reports] = build_together(
            [self], windows, again=again, workers=workers, on_cost=lambda _, cost: on_cost(cost)
        )
        return reports

    def folder(self, window: str) -> str:
        """Return the key of a window's folder."""
        return _folder(self._table, window, self._granularity)

    def files(self) -> Iterator[str]:
        """Yield the keys of all files that the table must have."""
        for window, files in self._expected.items():
            yield from (f"{self.folder(window)}/{name}" for name in files)

    def store_shown(self, path: Path) -> None:
        """Write which accounts are shown to a local file, of which parts are made. Raises StorageError."""
        self._contents.store_shown(path)

    def parts(self, shown: Path) -> Iterator[Part]:
        """Yield what each of them is made of, those of one part together, whether or not they are up to date.

        `shown` is the file of `store_shown`.
        """
        groups: dict[tuple[int, int], list[WindowFile]] = defaultdict(list)
        for window in [*self._windows, UNDATED]:
            for name, wanted in self._expected.get(window, {}).items():
                file = WindowFile(window, self.folder(window), name, wanted.rows)
                groups[wanted.parts, wanted.number].append(file)
        yield from (self._part(files, shown) for _, files in sorted(groups.items()))

    @cached_property
    def _expected(self) -> dict[str, dict[str, WindowPart]]:
        """Every window's files by name, as they ought to be; a window without rows has none and is absent.

        But a reader's pattern must find a file: so a table without rows has an empty one in its first window, and
        so have the undated rows.
        """
        expected = {
            window: {_part_name(part.number): part for part in parts}
            for window, parts in self._contents.of(self._table).items()
        }
        empty = {_part_name(0): WindowPart(0, 1)}
        expected.setdefault(UNDATED, empty)
        if expected.keys().isdisjoint(self._windows):
            expected[self._windows[0]] = empty
        return expected

    def _built(self) -> dict[str, dict[str, tuple[int, int, int]]]:
        """Return what the ledger says of each folder's files: digest, rows and bytes by name."""
        built: dict[str, dict[str, tuple[int, int, int]]] = {}
        for folder, part, digest, rows, size in read_built(self._storage, self._table).iter_rows():
            files = built.setdefault(folder, {})
            if part is not None:
                files[part] = (digest, rows, size)
        return built

    def _stored(self) -> dict[str, dict[str, int]]:
        """Return the bytes of each folder's files by name."""
        stored: dict[str, dict[str, int]] = {}
        for top in ("tables", UNDATED):
            for file in self._storage.listed(f"{top}/{self._table}"):
                folder, _, name = file.key.rpartition("/")
                stored.setdefault(folder, {})[name] = file.bytes
        return stored

    def _look_at(self, windows: Iterable[str]) -> Iterator[_Found]:
        """Hold what the ledger and the files of these windows are against what they ought to be."""
        built, stored = self._built(), self._stored()
        for window in windows:
            folder, expected = self.folder(window), self._expected.get(window, {})
            told, sizes = built.get(folder, {}), stored.get(folder, {})
            sound = {
                name: entry
                for name, entry in told.items()
                if name in expected
                and entry[:2] == (_digest(expected[name]), expected[name].rows)
                and entry[2] == sizes.get(name)
            }
            others = sorted(sizes.keys() - expected.keys())
            current = folder in built and not others and sound.keys() == expected.keys() == told.keys()
            yield _Found(window, sound, others, current)

    def _part(self, files: Sequence[WindowFile], shown: Path) -> Part:
        # They are the same part of their windows.
        part = self._expected[files[0].window][files[0].name]
        sources = self._contents.files_of(self._table, [file.window for file in files], part)
        return Part(
            self._table,
            self._granularity,
            tuple(files),
            tuple(
                (records_key(self._contents.hosts[pack], self._table, pack, number), pack)
                for pack, number in sources
            ),
            shown,
        )

    def _note(self, folders: Sequence[str], entries: Sequence[_Entry]) -> None:
        told = pl.DataFrame(entries, schema=LEDGER_SCHEMA, orient="row")
        note_built(self._storage, self._table, folders, told)

    def _remove_strangers(self) -> None:
        """Delete the files of windows that the study does not have (any more), lest they are read with the others."""
        own = {self.folder(window) for window in (*self._windows, UNDATED)}
        strangers = {folder: files for folder, files in self._stored().items() if folder not in own}
        if strangers:
            self._note(list(strangers), [])
        for folder, files in strangers.items():
            for name in files:
                self._storage.remove(f"{folder}/{name}")


def build_together(
    tables: Sequence[WindowedTable],
    windows: Sequence[str],
    *,
    again: bool = False,
    workers: Workers | None = None,
    on_cost: Callable[[str, WorkCost], None] = lambda _table, _cost: None,
) -> list[list[PartitionReport]]:
    """Build what is stale of these windows of several tables, or all `again`; report each table's, in their order.

    One pool of workers does what is to be done of all, so that none waits where a table has few parts. `on_cost` is
    told the table as well; all else is as with one table alone.
    """
    builds = [_Build(table, windows, again=again) for table in tables]
    for build, files, written in _written(builds, workers):
        on_cost(build.table.name, written.cost)
        build.store(files, written)
    return [build.finish(windows) for build in builds]


class _Build:
    """What is to be done to bring some windows of a table up to date, and what of that is done."""

    def __init__(self, table: WindowedTable, windows: Sequence[str], *, again: bool) -> None:
        self.table = table
        table._remove_strangers()
        self._stale = [found for found in table._look_at(windows) if again or not found.current]
        self._folders = [table.folder(found.window) for found in self._stale]
        self._entries: list[_Entry] = []
        todo: dict[tuple[int, int], list[WindowFile]] = defaultdict(list)
        for found, folder in zip(self._stale, self._folders, strict=True):
            sound = {} if again else found.sound
            self._entries += [(folder, name, *sound[name]) for name in sorted(sound)]
            for name, wanted in table._expected.get(found.window, {}).items():
                if name not in sound:
                    file = WindowFile(found.window, folder, name, wanted.rows)
                    todo[wanted.parts, wanted.number].append(file)
        self.groups = [group for _, files in sorted(todo.items()) for group in read_together(files)]
        self._note()

    def bytes(self, files: Sequence[WindowFile]) -> int:
        """Tell how much is to be read for these files, in bytes of converted ones."""
        expected = self.table._expected
        return sum(expected[file.window][file.name].bytes for file in files)

    def store(self, files: Sequence[WindowFile], written: WrittenPart) -> None:
        """Take note of files that were written: what is done stays done if the run ends here."""
        for file, stored in zip(files, written.files, strict=True):
            digest = _digest(self.table._expected[file.window][file.name])
            self._entries.append((file.folder, file.name, digest, stored.rows, stored.bytes))
        self._note()

    def finish(self, windows: Sequence[str]) -> list[PartitionReport]:
        """Remove what is too much, now that all is written, and report these windows."""
        for found, folder in zip(self._stale, self._folders, strict=True):
            for name in found.others:
                self.table._storage.remove(f"{folder}/{name}")
        if empty := set(self._folders) - {entry[0] for entry in self._entries}:
            self._entries += [(folder, None, 0, 0, 0) for folder in empty]
            self._note()
        built, rebuilt = self.table._built(), {found.window for found in self._stale}
        return [
            _report(window, built[self.table.folder(window)], rebuilt=window in rebuilt) for window in windows
        ]

    def _note(self) -> None:
        if self._stale:
            self.table._note(self._folders, self._entries)


def _written(
    builds: Sequence[_Build], workers: Workers | None
) -> Iterator[tuple[_Build, list[WindowFile], WrittenPart]]:
    """Write what is to be written; yield it as it is stored."""
    groups = [(build.bytes(files), build, files) for build in builds for files in build.groups]
    if not groups:
        return
    # The largest first: what comes last is short then, and no worker waits long for the others.
    groups.sort(key=lambda group: -group[0])
    with groups[0][1].table._storage.scratch() as scratch:
        shown = {build.table.name: scratch / f"{build.table.name}.parquet" for _, build, _ in groups}
        for table in {build.table.name: build.table for _, build, _ in groups}.values():
            table.store_shown(shown[table.name])
        parts = (
            (build, files, build.table._storage.root, build.table._part(files, shown[build.table.name]))
            for _, build, files in groups
        )
        if workers is None or sum(size for size, *_ in groups) <= _SMALL_BYTES:
            for build, files, root, part in parts:
                yield build, files, write_part(root, part)
            return
        with workers() as pool:
            submitted = (
                (build, files, pool.submit(write_part, root, part)) for build, files, root, part in parts
            )
            waiting = deque(islice(submitted, _PARTS_AHEAD))
            while waiting:
                build, files, future = waiting.popleft()
                yield build, files, future.result()
                waiting.extend(islice(submitted, 1))


def remove_other_tables(storage: StudyStorage, tables: Collection[str]) -> None:
    """Delete the files of tables that the study no longer has, and the folders that its own do not need."""
    for root in ("tables", UNDATED):
        for table in storage.folders(root):
            for key in storage.keys(f"{root}/{table}") if table not in tables else ():
                storage.remove(key)
        storage.remove_empty_folders(root)
    for table in set(TABLES) - set(tables):
        storage.remove(ledger_key(table))


def table_keys(storage: StudyStorage, table: str) -> list[str]:
    """Return the files of all windows of one table and of its undated rows."""
    return [*storage.keys(f"tables/{table}"), *storage.keys(f"{UNDATED}/{table}")]


def _report(window: str, files: dict[str, tuple[int, int, int]], *, rebuilt: bool) -> PartitionReport:
    return PartitionReport(
        window,
        rows=sum(rows for _, rows, _ in files.values()),
        bytes=sum(size for _, _, size in files.values()),
        parts=len(files),
        rebuilt=rebuilt,
    )


def _folder(table: str, window: str, granularity: Granularity) -> str:
    return f"{UNDATED}/{table}" if window == UNDATED else f"tables/{table}/{granularity.folder(window)}"


def _digest(part: WindowPart) -> int:
    return part.digest ^ _EMPTY_DIGEST


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"
