"""What another study has shared: its accounts, and its records by their URIs with their CIDs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.entries import BATCH_ROWS, as_entries
from backfill_dagster.dids.sources.files import one_line
from backfill_dagster.errors import SourceError, StorageError
from backfill_dagster.records.tables import OTHER_RECORDS, TABLES_OF_COLLECTION
from backfill_dagster.sharing.shared_folder import ACCOUNTS, SharedIds, collection_of, shared_place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from backfill_dagster.config.sources import SharedSource
    from backfill_dagster.dids.entries import SourceAccess


class _SharedEntries:
    """Something that a shared folder lists."""

    needs_network = False

    def __init__(self, config: SharedSource, field: str) -> None:
        self._config = config
        self.field = field

    def describe(self) -> str:
        """Name the folder."""
        return f"{self.field}.path = {str(self._config.path)!r}"

    def stamp(self) -> str:
        """Return the digest of what the folder's manifest says, which names every file by its own."""
        with self._reading():
            return f"{self.open().digest} {self._config.edited}"

    def open(self) -> SharedIds:
        """Read the folder's manifest. Raises SourceError."""
        with self._reading():
            return SharedIds.open(shared_place(self._config.path))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (StorageError, OSError, pl.exceptions.PolarsError) as error:
            raise SourceError(f"{self.describe()}: {one_line(error)}") from error


class SharedAccounts(_SharedEntries):
    """The accounts whose records are shared."""

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield their DIDs."""
        with self._reading():
            shared = self.open()
            shared.check([ACCOUNTS])
            for batch in shared.scan(ACCOUNTS).select("did").collect_batches(chunk_size=BATCH_ROWS):
                for some in batch.iter_slices(BATCH_ROWS):
                    yield as_entries(some["did"])

    def check_asked(self, collections: set[str]) -> None:
        """Raise SourceError unless a study that asks for these collections asks for what is shared."""
        shared = self.open()
        if lacking := sorted(shared.collections - collections):
            raise SourceError(
                f"{self.describe()}: has records of {', '.join(lacking)}, which this study does not ask for; name "
                "every type in record_types or other_record_types, as the shared rebuilt.yaml does"
            )
        if strange := sorted(collections - shared.collections):
            raise SourceError(
                f"{self.describe()}: has no records of {', '.join(strange)}; take them out of record_types or "
                "other_record_types, as in the shared rebuilt.yaml"
            )


class SharedRecords(_SharedEntries):
    """The records of one collection that are shared: entries with, beside each URI, its `cid` and `table`."""

    def __init__(self, config: SharedSource, field: str, collection: str) -> None:
        super().__init__(config, field)
        self._collection = collection

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield their URIs."""
        with self._reading():
            shared = self.open()
            own = TABLES_OF_COLLECTION.get(self._collection, (OTHER_RECORDS,))
            tables = [table for table in shared.tables if table in own]
            shared.check(tables)
            for table in tables:
                for batch in shared.scan(table).collect_batches(chunk_size=BATCH_ROWS):
                    for rows in batch.iter_slices(BATCH_ROWS):
                        shared.check_records(table, rows)
                        is_own = table != OTHER_RECORDS or collection_of("uri") == self._collection
                        some = rows.filter(is_own)
                        told = as_entries(some["uri"])
                        yield told.with_columns(cid=some["cid"], table=pl.lit(table))
