"""Records that stand in a table more than once, wherever in its final files: there must be none.

A table can have more URIs than fit in memory, and those that are the same can lie in any two of its files. So their
hashes are dealt out to heaps on disk, in which the same URIs come together; a heap is small enough to be sorted.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.tables.build import table_keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backfill_dagster.storage import StudyStorage

# Hashes of a heap, on average: of 8 bytes each. With a billion rows that makes 250 heaps, as many open files.
HEAP_ROWS = 2**22


def count_repeated_uris(storage: StudyStorage, table: str) -> int:
    """Count the rows of a table's final files, undated ones included, whose URI stands there more than once."""
    keys = table_keys(storage, table)
    uris = storage.scan(keys, TABLE_BY_NAME[table].schema).select("uri")
    [number] = storage.collect([uris.select(pl.len())], keys)
    with storage.scratch() as folder:
        heaps = [folder / f"{heap}.hashes" for heap in range(1 + number.item() // HEAP_ROWS)]
        try:
            _deal_out(storage, table, keys, heaps)
        except OSError as error:
            raise StorageError.unwritable(folder, error) from error
        repeated = np.concatenate([_repeated(np.fromfile(heap, np.uint64)) for heap in heaps])
    if not repeated.size:
        return 0
    # Two texts can have the same hash.
    alike = uris.filter(_hash().is_in(pl.Series(repeated).implode()))
    [texts] = storage.collect([alike], keys)
    return int(texts["uri"].is_duplicated().sum())


def _deal_out(storage: StudyStorage, table: str, keys: Sequence[str], heaps: Sequence[Path]) -> None:
    """Write the hash of every row's URI to the heap that its range of hashes belongs to."""
    bounds = np.array([heap * 2**64 // len(heaps) for heap in range(1, len(heaps))], np.uint64)
    with ExitStack() as stack:
        files = [stack.enter_context(heap.open("wb")) for heap in heaps]
        for key in keys:
            storage.ensure_headroom()
            hashed = storage.scan([key], TABLE_BY_NAME[table].schema).select(_hash())
            [frame] = storage.collect([hashed], [key], engine="streaming")
            hashes = np.sort(frame["uri"].to_numpy())
            for file, some in zip(files, np.split(hashes, np.searchsorted(hashes, bounds)), strict=True):
                file.write(some.data)


def _repeated(
    hashes: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return the hashes that stand there more than once, each of them once."""
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _hash() -> pl.Expr:
    return pl.col("uri").hash()
