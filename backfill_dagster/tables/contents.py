"""What the tables are made of: the indexes of all packs with snapshots, read once for all tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.window_index import INDEX_SCHEMA, index_key, stable_number

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backfill_dagster.storage import StudyStorage

# Bytes of converted files that make one part of a window, at most, on average; in memory they take some six times
# as much.
PART_BYTES = 16 * 2**20
# Indexes that are read at once: of a hundred accounts as a rule, with some hundred rows each.
_INDEX_FILES = 256


@dataclass(slots=True)
class WindowPart:
    """One part of a window: its number of so many, the digest of its content, its rows, and where they come from.

    `files` are converted files, as pack and number, `bytes` the rows' share of those.
    """

    number: int
    parts: int
    digest: int = 0
    rows: int = 0
    bytes: int = 0
    files: list[tuple[str, int]] = field(default_factory=list)


class TableContents:
    """The content of a study's tables by window and converted file.

    `shown` says which accounts are in the tables and where their snapshots are: `did, pds_host, pack`.
    """

    def __init__(self, storage: StudyStorage, shown: pl.DataFrame, part_bytes: int | None = None) -> None:
        self.shown = shown
        self._storage = storage
        self._part_bytes = part_bytes or PART_BYTES

    def of(self, table: str) -> dict[str, list[WindowPart]]:
        """Return the parts of each of a table's windows.

        The converted files of a window are dealt out to parts of bounded size by a hash of their names: a part is a
        function of those files that have rows in it, and what has changed elsewhere moves no row from one part to
        another, until the window has doubled.
        """
        entries = self._by_table.get((table,))
        rows = [] if entries is None else list(entries.drop("table").iter_rows())
        rows_of_file: Counter[tuple[str, int]] = Counter()
        for _, pack, number, _, count, _ in rows:
            rows_of_file[pack, number] += count
        shares = [-(-size * count // rows_of_file[pack, number]) for _, pack, number, _, count, size in rows]
        window_bytes: Counter[str] = Counter()
        for (window, *_), share in zip(rows, shares, strict=True):
            window_bytes[window] += share
        dealt = {(pack, number): stable_number(f"{pack}-{number}") for pack, number in rows_of_file}
        windows: dict[str, dict[int, WindowPart]] = {}
        for (window, pack, number, digest, count, _), share in zip(rows, shares, strict=True):
            parts = _part_count(window_bytes[window], self._part_bytes)
            place = dealt[pack, number] % parts
            part = windows.setdefault(window, {}).setdefault(place, WindowPart(place, parts))
            part.digest ^= digest
            part.rows += count
            part.bytes += share
            part.files.append((pack, number))
        return {window: list(parts.values()) for window, parts in windows.items()}

    @cached_property
    def hosts(self) -> dict[str, str]:
        """The PDS host of each pack."""
        return dict(self.shown.select("pack", "pds_host").unique().iter_rows())

    def shown_of(self, packs: Collection[str]) -> pl.DataFrame:
        """Return `did, pack` of the accounts whose snapshots these packs hold."""
        if len(packs) == len(self.hosts):
            return self.shown.select("did", "pack")
        return self.shown.filter(pl.col("pack").is_in(list(packs))).select("did", "pack")

    @cached_property
    def _by_table(self) -> dict[tuple[object, ...], pl.DataFrame]:
        packs = sorted((host, pack) for pack, host in self.hosts.items())
        keys = [key for pack in packs if self._storage.exists(key := index_key(*pack))]
        found = [
            self._read(keys[first : first + _INDEX_FILES]) for first in range(0, len(keys), _INDEX_FILES)
        ]
        return pl.concat(found).partition_by("table", as_dict=True) if found else {}

    def _read(self, keys: Sequence[str]) -> pl.DataFrame:
        rows = (
            self._storage.scan(keys, INDEX_SCHEMA)
            .join(self.shown.lazy().select("did", "pack"), on=["did", "pack"], how="semi")
            .group_by("table", "window", "pack", "number")
            .agg(
                digest=pl.col("content").bitwise_xor(),
                rows=pl.col("rows").sum(),
                bytes=pl.col("bytes").first(),
            )
        )
        return self._storage.collect([rows], keys)[0]


def _part_count(size: int, part_bytes: int) -> int:
    """Return into how many parts so many bytes are dealt: powers of two, so that it changes seldom."""
    return 1 << max(0, (max(size, 1) - 1) // part_bytes).bit_length()
