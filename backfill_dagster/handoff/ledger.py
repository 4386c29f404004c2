"""The ledger of one consumer and table: the URIs of all records that were ever handed over, or are owed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.purge.record_rows import without_purged_records
from backfill_dagster.storage import RowGroupWriter, arrow_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.dids.did_ranges import DidRange
    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage

HANDED_OVER_COLUMNS = (
    Column("uri", pl.String(), "AT-URI of a record that was handed to the consumer.", required=True),
)
_SCHEMA = schema_of(HANDED_OVER_COLUMNS)
# Files that a ledger may have before they are made one: each is opened for each lot of accounts.
_MOST_FILES = 32
_ROWS_AT_ONCE = 1_000_000
_MERGED = "merged-"


class HandoffLedger:
    """The files `<folder>/*.parquet`: one for each batch, and one of those that were merged. A set of URIs.

    As a set it may hold one in two files, so that a merge which was interrupted has changed nothing.
    """

    def __init__(self, storage: StudyStorage, folder: str) -> None:
        self._storage = storage
        self._folder = folder

    def keys(self) -> list[str]:
        """Return the ledger's files."""
        return self._storage.keys(self._folder)

    def holds(self, batch: str) -> bool:
        """Tell whether a batch that is not delivered yet is owed."""
        return self._storage.exists(self._key(batch))

    def enter(self, batch: str, uris: pl.Series) -> None:
        """Enter a batch: from then on it is owed, and its records count as handed over."""
        self._storage.write(self._key(batch), uris.to_frame("uri"))

    def rows(self) -> int:
        """Return how many URIs there are."""
        keys = self.keys()
        [counted] = self._storage.collect([self._scan(keys).select(pl.len())], keys)
        return int(counted.item())

    def within(self, dids: DidRange, keys: Sequence[str]) -> pl.LazyFrame:
        """Return the `uri` of records of these accounts, in these of the ledger's files."""
        return self._scan(keys).filter(dids.holds("uri", "at://"))

    def merge(self) -> None:
        """Make one file of many, if there are; only while no batch is owed."""
        keys = self.keys()
        if len(keys) <= _MOST_FILES:
            return
        with self._storage.scratch() as scratch:
            local, rows = scratch / "merged.parquet", 0
            with RowGroupWriter(local, arrow_table(_SCHEMA.to_frame()).schema, ()) as file:
                for dids in did_ranges(self.rows(), _ROWS_AT_ONCE):
                    [some] = self._storage.collect([self.within(dids, keys).unique().sort("uri")], keys)
                    file.write(arrow_table(some))
                    rows += some.height
            merged = self._key(f"{_MERGED}{rows}")
            self._storage.publish(local, merged, rows=rows)
        for key in keys:
            if key != merged:
                self._storage.remove(key)

    def purge(self, tombstones: Tombstones) -> int:
        """Take out what is purged; return how many URIs that were. Every file stays, be it empty."""
        removed = 0
        for key in self.keys():
            rows = self._storage.read(key)
            kept = without_purged_records(rows, tombstones)
            if kept.height < rows.height:
                self._storage.write(key, kept)
                removed += rows.height - kept.height
        return removed

    def _scan(self, keys: Sequence[str]) -> pl.LazyFrame:
        return self._storage.scan(keys, _SCHEMA)

    def _key(self, batch: str) -> str:
        return f"{self._folder}/{batch}.parquet"
