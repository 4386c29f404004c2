"""The tables: a study's records by type and time window of creation, made from the snapshots of its accounts.

Rows come from stored conversions of packs; an account's rows are taken from the one pack that holds its snapshot,
so that a record stands in a table once. The converted files of a table are dealt out to parts of bounded size by a
hash of their names, and each part has at most one file in each window. So a part's file in a window is a function
of those of its converted files that have rows there, and of nothing else: it is written again only if they change,
and what has changed elsewhere moves no row from one part to another, until the table has doubled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.records.conversion import records_key
from backfill_dagster.records.tables import SCHEMA_VERSION, TABLE_BY_NAME
from backfill_dagster.records.window_index import INDEX_SCHEMA, index_key, stable_number
from backfill_dagster.records.windows import UNDATED
from backfill_dagster.tables.ledger import (
    LEDGER_FOLDER,
    LEDGER_SCHEMA,
    ledger_key,
    note_built,
    read_built,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StudyStorage

# Bytes of converted files that are read at once, at most, on average; in memory they take several times as much.
PART_BYTES = 128 * 2**20
# Indexes that are read at once: of a hundred accounts as a rule, with some hundred rows each.
_INDEX_FILES = 256
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
class _Part:
    """A part's file in one window, as it ought to be: its number, the digest of its content, its rows."""

    number: int
    digest: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Found:
    """How a window's files were found: the ledger's words on those that are right, by name; and those too many."""

    window: str
    sound: dict[str, tuple[int, int, int]]
    others: list[str]
    current: bool


class WindowedTable:
    """One table of a study, and what belongs in it now.

    `windows` are the keys of all windows that the study has. `shown` says which accounts are in the tables and
    where their snapshots are: `did, pds_host, pack`. Wherever a window is asked for, it may also be `undated`.
    """

    def __init__(
        self,
        storage: StudyStorage,
        table: str,
        granularity: Granularity,
        windows: Sequence[str],
        shown: pl.DataFrame,
        part_bytes: int | None = None,
    ) -> None:
        self._storage = storage
        self._table = table
        self._granularity = granularity
        self._windows = windows
        self._shown = shown
        self._part_bytes = part_bytes or PART_BYTES

    def stale(self, windows: Iterable[str]) -> list[str]:
        """Return those of these windows whose files are not what they ought to be; reads no records."""
        return [found.window for found in self._look_at(windows) if not found.current]

    def build(self, windows: Sequence[str], *, again: bool = False) -> list[PartitionReport]:
        """Build those of these windows that are stale, or all of them `again`; report each.

        What lies in folders of windows that the study does not have is removed.

        Raises StorageError if the converted records are not those of which their index tells.
        """
        self._remove_strangers()
        stale = [found for found in self._look_at(windows) if again or not found.current]
        if stale:
            self._rebuild(stale, again=again)
        built, rebuilt = self._built(), {found.window for found in stale}
        return [_report(window, built[self.folder(window)], rebuilt=window in rebuilt) for window in windows]

    def folder(self, window: str) -> str:
        """Return the key of a window's folder."""
        return _folder(self._table, window, self._granularity)

    @cached_property
    def _content(self) -> pl.DataFrame:
        """What the table is made of, by file: `window, pack, number, digest, rows, bytes, part`, of shown accounts."""
        packs = self._shown.select("pds_host", "pack").unique().sort("pds_host", "pack").rows()
        keys = [key for pack in packs if self._storage.exists(key := index_key(*pack))]
        found = [
            self._read_index(keys[first : first + _INDEX_FILES])
            for first in range(0, max(1, len(keys)), _INDEX_FILES)
        ]
        content = pl.concat(found)
        files = content.select("pack", "number", "bytes").unique(["pack", "number"])
        parts = _part_count(int(files["bytes"].sum()), self._part_bytes)
        numbers = [stable_number(f"{pack}-{number}") % parts for pack, number, _ in files.iter_rows()]
        dealt = files.select("pack", "number", part=pl.Series(numbers, dtype=pl.Int32))
        return content.join(dealt, on=["pack", "number"])

    def _read_index(self, keys: Sequence[str]) -> pl.DataFrame:
        rows = (
            self._storage.scan(keys, INDEX_SCHEMA)
            .filter(pl.col("table") == self._table)
            .join(self._shown.lazy().select("did", "pack"), on=["did", "pack"], how="semi")
            .group_by("window", "pack", "number")
            .agg(
                digest=pl.col("content").bitwise_xor(),
                rows=pl.col("rows").sum(),
                bytes=pl.col("bytes").first(),
            )
        )
        return self._storage.collect([rows], keys)[0]

    @cached_property
    def _expected(self) -> dict[str, dict[str, _Part]]:
        """Every window's files by name, as they ought to be; a window without rows has none and is absent.

        But a reader's pattern must find a file: so a table without rows has an empty one in its first window, and
        so have the undated rows.
        """
        summed = (
            self._content.group_by("window", "part")
            .agg(
                digest=pl.col("digest").bitwise_xor() ^ pl.lit(_EMPTY_DIGEST, pl.UInt64),
                rows=pl.col("rows").sum(),
            )
            .sort("window", "part")
        )
        expected: dict[str, dict[str, _Part]] = {}
        for window, part, digest, rows in summed.iter_rows():
            expected.setdefault(window, {})[_part_name(part)] = _Part(part, digest, rows)
        empty = {_part_name(0): _Part(0, _EMPTY_DIGEST, 0)}
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
        for key in table_keys(self._storage, self._table):
            folder, _, name = key.rpartition("/")
            stored.setdefault(folder, {})[name] = self._storage.size(key)
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
                and entry[:2] == (expected[name].digest, expected[name].rows)
                and entry[2] == sizes.get(name)
            }
            others = sorted(sizes.keys() - expected.keys())
            current = folder in built and not others and sound.keys() == expected.keys() == told.keys()
            yield _Found(window, sound, others, current)

    def _rebuild(self, stale: Sequence[_Found], *, again: bool) -> None:
        folders = [self.folder(found.window) for found in stale]
        entries: list[_Entry] = []
        todo: dict[int, list[str]] = {}
        for found in stale:
            sound = {} if again else found.sound
            entries += [(self.folder(found.window), name, *sound[name]) for name in sorted(sound)]
            for name, part in self._expected.get(found.window, {}).items():
                if name not in sound:
                    todo.setdefault(part.number, []).append(found.window)
        self._note(folders, entries)
        for number, windows in sorted(todo.items()):
            entries += self._write_part(number, windows)
            # What is done stays done if the run ends here.
            self._note(folders, entries)
        for found in stale:
            for name in found.others:
                self._storage.remove(f"{self.folder(found.window)}/{name}")
        full = {entry[0] for entry in entries}
        self._note(
            folders, [*entries, *((folder, None, 0, 0, 0) for folder in folders if folder not in full)]
        )

    def _note(self, folders: Sequence[str], entries: Sequence[_Entry]) -> None:
        told = pl.DataFrame(entries, schema=LEDGER_SCHEMA, orient="row")
        note_built(self._storage, self._table, folders, told)

    def _write_part(self, number: int, windows: Sequence[str]) -> list[_Entry]:
        """Write a part's file in each of these windows; return their entries for the ledger."""
        frames = self._read_part(number, windows)
        empty = TABLE_BY_NAME[self._table].schema.to_frame()
        expected = [self._expected[window][_part_name(number)] for window in windows]
        files: list[tuple[str, pl.DataFrame]] = []
        for window, part in zip(windows, expected, strict=True):
            rows = frames.get(window, empty)
            if rows.height != part.rows:
                raise StorageError(
                    f"of the {part.rows:,} records converted for {self.folder(window)}, {rows.height:,} are stored "
                    f"below {self._storage.path('records')}; materialize `records`, which converts them again"
                )
            files.append((f"{self.folder(window)}/{_part_name(number)}", rows))
        return [
            (self.folder(window), _part_name(number), part.digest, stored.rows, stored.bytes)
            for window, part, stored in zip(windows, expected, self._storage.write_many(files), strict=True)
        ]

    def _read_part(self, number: int, windows: Sequence[str]) -> dict[str, pl.DataFrame]:
        """Read a part's rows in these windows, by URI, from the files that have some."""
        schema = TABLE_BY_NAME[self._table].schema
        content = self._content.filter((pl.col("part") == number) & pl.col("window").is_in(list(windows)))
        hosts = dict(self._shown.select("pack", "pds_host").unique().iter_rows())
        keys = {
            records_key(hosts[pack], self._table, pack, file): pack
            for pack, file in content.select("pack", "number").unique().sort(pl.all()).iter_rows()
        }
        stored = {key: pack for key, pack in keys.items() if self._storage.exists(key)}
        if not stored:
            return {}
        starts = pl.Series(
            [self._granularity.start(window) for window in windows], dtype=schema["created_at"]
        )
        start = self._granularity.start_of_row()
        rows = (
            pl.concat(
                self._storage.scan([key], schema).with_columns(_pack=pl.lit(pack))
                for key, pack in stored.items()
            )
            .filter(start.is_in(starts.implode(), nulls_equal=True))
            .join(self._shown.lazy().select("did", _pack="pack"), on=["did", "_pack"], how="semi")
            .select(*schema.names(), _start=start)
        )
        frame = self._storage.collect([rows], stored)[0].sort("uri")
        parts = frame.partition_by("_start", as_dict=True, include_key=False)
        return {self._granularity.key(first): part for (first,), part in parts.items()}

    def _remove_strangers(self) -> None:
        """Delete the files of windows that the study does not have (any more), lest they are read with the others."""
        own = {self.folder(window) for window in (*self._windows, UNDATED)}
        strangers = {folder: files for folder, files in self._stored().items() if folder not in own}
        if strangers:
            self._note(list(strangers), [])
        for folder, files in strangers.items():
            for name in files:
                self._storage.remove(f"{folder}/{name}")


def remove_other_tables(storage: StudyStorage, tables: Collection[str]) -> None:
    """Delete the files of tables that the study no longer has, and the folders that its own do not need."""
    for root in ("tables", UNDATED):
        for table in storage.folders(root):
            for key in storage.keys(f"{root}/{table}") if table not in tables else ():
                storage.remove(key)
        storage.remove_empty_folders(root)
    for key in set(storage.keys(LEDGER_FOLDER)) - {ledger_key(table) for table in tables}:
        storage.remove(key)


def table_keys(storage: StudyStorage, table: str) -> list[str]:
    """Return the files of all windows of one table and of its undated rows."""
    return [*storage.keys(f"tables/{table}"), *storage.keys(f"{UNDATED}/{table}")]


def scan_table(storage: StudyStorage, table: str) -> pl.LazyFrame:
    """Return a lazy frame over all windows of one table and its undated rows."""
    return storage.scan(table_keys(storage, table), TABLE_BY_NAME[table].schema)


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


def _part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _part_count(size: int, part_bytes: int) -> int:
    """Return into how many parts so many bytes are dealt: powers of two, so that it changes seldom."""
    return 1 << max(0, (max(size, 1) - 1) // part_bytes).bit_length()
