"""Batches of records on their way to a consumer."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.purge.record_rows import purged_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage

_NAME_LENGTH = 20
_CREATED_AT = "created_at"
_BATCH_FILE = re.compile(rf"[0-9a-f]{{{_NAME_LENGTH}}}\.parquet")


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """A batch that is put aside: its name, its table and where it lies."""

    name: str
    table: str
    key: str

    @classmethod
    def of_key(cls, key: str) -> StagedBatch:
        """Return the batch that lies at `<folder>/<table>/<name>.parquet`."""
        _, table, file = key.rsplit("/", 2)
        return cls(file.removesuffix(".parquet"), table, key)


def is_batch_file(name: str) -> bool:
    """Tell whether a file of this name is a batch, and not somebody else's."""
    return _BATCH_FILE.fullmatch(name) is not None


def batch_name(owner: str, table: str, rows: pl.DataFrame) -> str:
    """Name a batch by whose it is and its records (`uri, cid`): of the same records, the same."""
    identity = hashlib.sha256(f"{owner} {table}\n".encode())
    for uri, cid in rows.select("uri", "cid").iter_rows():
        identity.update(f"{uri} {cid}\n".encode())
    return identity.hexdigest()[:_NAME_LENGTH]


def stage_batch(storage: StudyStorage, batch: StagedBatch, rows: pl.DataFrame, created_at: str) -> None:
    """Put the rows of a batch aside, with the time that its consumer is told."""
    storage.write(batch.key, rows, {_CREATED_AT: created_at})


def created_at_of(storage: StudyStorage, batch: StagedBatch) -> str:
    """Return the time that the consumer is told of a staged batch."""
    return storage.metadata(batch.key).get(_CREATED_AT, "")


def purge_batch(storage: StudyStorage, batch: StagedBatch, tombstones: Tombstones) -> tuple[int, int]:
    """Take what is purged out of a batch that lies in the study's folder; return rows removed, and masked.

    A batch without any row left goes.
    """
    rows, created_at = storage.read(batch.key), created_at_of(storage, batch)
    kept, removed, masked = purged_rows(rows, tombstones)
    if kept.is_empty():
        storage.remove(batch.key)
    elif removed or masked:
        stage_batch(storage, batch, kept, created_at)
    return removed, masked


def of_size(frames: Iterable[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """Cut rows that come in frames into frames of this size, of which the last may be smaller."""
    held: list[pl.DataFrame] = []
    rows = 0
    for frame in frames:
        held.append(frame)
        rows += frame.height
        if rows < size:
            continue
        whole = pl.concat(held)
        full = rows - rows % size
        for first in range(0, full, size):
            yield whole.slice(first, size)
        held, rows = [whole.slice(full)], rows - full
    if rows:
        yield pl.concat(held)
