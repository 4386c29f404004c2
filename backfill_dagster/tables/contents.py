"""What tables are made of: the indexes of all packs with snapshots, read once for all of them that are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.window_index import INDEX_SCHEMA, index_key, stable_number
from backfill_dagster.stores.local import writing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from backfill_dagster.storage import StudyStorage

# Bytes of converted files that make one part of a window, at most, on average; in memory they take some six times
# as much.
PART_BYTES = 16 * 2**20
# Packs whose indexes are read at once: of a hundred accounts as a rule, with some hundred rows each.
_PACKS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class WindowPart:
    """One part of a window: its number of so many, the digest of its content and its rows.

    `bytes` are the rows' share of those of the converted files that they come from.
    """

    number: int
    parts: int
    digest: int = 0
    rows: int = 0
    bytes: int = 0


class TableContents:
    """The content of a study's tables by window and converted file.

    `shown` says which accounts are in the tables and where their snapshots are: `did, pds_host, pack`. Of other tables
    than those that are named nothing is read, and nothing can be asked.
    """

    def __init__(
        self,
        storage: StudyStorage,
        shown: pl.DataFrame,
        tables: Collection[str],
        part_bytes: int | None = None,
    ) -> None:
        packs = shown.select("pack", "pds_host").unique("pack").sort("pack")
        # The PDS host of each pack.
        self.hosts: dict[str, str] = dict(packs.iter_rows())
        # Of all accounts, the place of the pack among the sorted ones: a tenth of what its name would take.
        self._accounts = shown.select(
            "did",
            # Cast, since of no packs at all Polars leaves the type as it is.
            place=pl.col("pack").replace_strict(packs["pack"], range(packs.height)).cast(pl.UInt32),
        )
        self._storage = storage
        self._tables = frozenset(tables)
        self._part_bytes = part_bytes or PART_BYTES

    def of(self, table: str) -> dict[str, list[WindowPart]]:
        """Return the parts of each of a table's windows.

        The converted files of a window are dealt out to parts of bounded size by a hash of their names: a part is a
        function of those files that have rows in it, and what has changed elsewhere moves no row from one part to
        another, until the window has doubled.
        """
        entries = self._of(table)
        windows: dict[str, list[WindowPart]] = {}
        if entries is None:
            return windows
        parts = (
            entries.group_by("window", "place", "parts")
            .agg(pl.col("digest").bitwise_xor(), pl.col("rows").sum(), pl.col("share").sum())
            .sort("window", "place")
        )
        for window, *part in parts.iter_rows():
            windows.setdefault(window, []).append(WindowPart(*part))
        return windows

    def files_of(self, table: str, windows: Collection[str], part: WindowPart) -> list[tuple[str, int]]:
        """Return the converted files, as pack and number, with rows in this part of any of these windows, sorted."""
        entries = self._of(table)
        if entries is None:
            return []
        in_part = (pl.col("place") == part.number) & (pl.col("parts") == part.parts)
        files = entries.filter(in_part & pl.col("window").is_in(list(windows))).select("pack", "number")
        return [(self._packs[pack], number) for pack, number in files.unique().sort(pl.all()).iter_rows()]

    def _of(self, table: str) -> pl.DataFrame | None:
        if table not in self._tables:
            raise KeyError(table)
        return self._by_table.get((table,))

    def store_shown(self, path: Path) -> None:
        """Write `did, pack` of all accounts that are shown to a local file. Raises StorageError."""
        names = pl.col("place").replace_strict(range(len(self._packs)), self._packs).cast(pl.String)
        with writing(path):
            self._accounts.select("did", pack=names).write_parquet(path, compression="lz4")

    @cached_property
    def _packs(self) -> list[str]:
        """The names of the packs, sorted. Their places stand for them wherever there are many."""
        return list(self.hosts)

    @cached_property
    def _by_table(self) -> dict[tuple[object, ...], pl.DataFrame]:
        """The rows of each converted file in each window, by table, and which part they belong to.

        As `window, pack, number, digest, rows, share, place, parts`, where `share` is of the file's bytes.
        """
        entries = pl.concat(list(self._read())).with_columns(
            # Rounded up.
            share=-(-pl.col("bytes") * pl.col("rows") // pl.col("rows").sum().over("table", "pack", "number"))
        )
        windows = entries.group_by("table", "window").agg(pl.col("share").sum())
        parts = [_part_count(size, self._part_bytes) for size in windows["share"]]
        files = entries.select("pack", "number").unique()
        names = [stable_number(f"{self._packs[pack]}-{number}") for pack, number in files.iter_rows()]
        return (
            entries.drop("bytes")
            .join(files.with_columns(place=pl.Series(names, dtype=pl.UInt64)), on=["pack", "number"])
            .join(
                windows.select("table", "window", parts=pl.Series(parts, dtype=pl.UInt64)),
                on=["table", "window"],
            )
            .with_columns(pl.col("place") % pl.col("parts"))
            .partition_by("table", as_dict=True, include_key=False)
        )

    def _read(self) -> Iterator[pl.DataFrame]:
        """Yield `table, window, pack, number, digest, rows, bytes` of some packs after the other."""
        for first in range(0, max(1, len(self._packs)), _PACKS_AT_ONCE):
            packs = self._packs[first : first + _PACKS_AT_ONCE]
            keys = list(self._storage.sizes_of(index_key(self.hosts[pack], pack) for pack in packs))
            own = self._accounts.filter(pl.col("place").is_between(first, first + len(packs), closed="left"))
            rows = (
                self._storage.scan(keys, INDEX_SCHEMA)
                .filter(pl.col("table").is_in(sorted(self._tables)))
                .with_columns(
                    pl.col("pack")
                    .replace_strict(packs, range(first, first + len(packs)), default=None)
                    .cast(pl.UInt32)
                )
                .join(own.lazy(), left_on=["did", "pack"], right_on=["did", "place"], how="semi")
                .group_by("table", "window", "pack", "number")
                .agg(
                    digest=pl.col("content").bitwise_xor(),
                    rows=pl.col("rows").sum(),
                    bytes=pl.col("bytes").first(),
                )
            )
            yield from self._storage.collect([rows], keys)


def _part_count(size: int, part_bytes: int) -> int:
    """Return into how many parts so many bytes are dealt: powers of two, so that it changes seldom."""
    return 1 << max(0, (max(size, 1) - 1) // part_bytes).bit_length()
