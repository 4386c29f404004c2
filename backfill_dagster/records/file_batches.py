"""Which records of a blocks file are converted at once: those of some collections, so that memory stays bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.record_keys import is_collection

if TYPE_CHECKING:
    from backfill_dagster.records.settings import RecordSettings
    from backfill_dagster.storage import StudyStorage

# What is made of so many records, beside their blocks, takes less than a hundred megabytes. A collection that has
# more of them is converted by itself.
BATCH_RECORDS = 65_536
# The share of unwanted records below which they are read all the same: to pass over them takes time too.
_FEW = 0.1
_SCHEMA = pl.Schema(
    {"did": pl.String, "collection": pl.String, "rkey": pl.String, "cid": pl.Binary, "block": pl.Binary}
)


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Records of a blocks file: those of these collections, or all if None; and a count of some that are not read.

    `unread` are (DID, collection, how many) of collections that the study does not want.
    """

    collections: tuple[str, ...] | None
    unread: tuple[tuple[str, str, int], ...] = ()

    def read(self, storage: StudyStorage, key: str) -> pl.DataFrame:
        """Read the records from their file."""
        if self.collections is None:
            return storage.read(key)
        wanted = pl.col("collection").is_in(self.collections)
        (blocks,) = storage.collect([storage.scan([key], _SCHEMA).filter(wanted)], [key])
        return blocks


def file_batches(storage: StudyStorage, key: str, settings: RecordSettings) -> list[FileBatch]:
    """Part a blocks file into batches, in the order of the file, which is sorted by collection.

    All collections of one table are in one batch, those of `other_records` in the last. Records of a collection that is
    none are read, whatever the study wants: they are to be rejected.
    """
    frame = storage.scan([key], _SCHEMA).group_by("did", "collection").agg(records=pl.len())
    (counted,) = storage.collect([frame], [key])
    collection = pl.col("collection")
    is_unwanted = ~collection.is_in(sorted(settings.collections)) & is_collection(collection)
    unwanted = counted.filter(is_unwanted).sort("collection", "did").rows()
    is_other = collection.is_in(sorted(settings.other_types))
    wanted = (
        counted.filter(~is_unwanted)
        .group_by(pl.when(~is_other).then(collection).alias("own"))
        .agg(collection.unique().sort(), pl.col("records").sum())
        .sort("own", nulls_last=True)
    )
    groups: list[list[str]] = [[]]
    records = 0
    for _, names, number in wanted.iter_rows():
        if groups[-1] and records + number > BATCH_RECORDS:
            groups.append([])
            records = 0
        groups[-1] += names
        records += number
    unread = sum(number for *_, number in unwanted)
    if len(groups) == 1 and unread < _FEW * (unread + records):
        return [FileBatch(None)]
    first, *others = (tuple(group) for group in groups)
    return [FileBatch(first, tuple(unwanted)), *(FileBatch(group) for group in others)]
