"""The accounts that a study has collected, by its metadata store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.entries import BATCH_ROWS, as_entries
from backfill_dagster.dids.sources.files import files_stamp, write_ahead_log
from backfill_dagster.errors import SourceError, StorageError
from backfill_dagster.metadata_stores.opening import open_store, store_path
from backfill_dagster.metadata_stores.tables import USER_METADATA_KEY
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backfill_dagster.config.sources import CollectedSource
    from backfill_dagster.dids.entries import SourceAccess
    from backfill_dagster.stores.location import Location


class CollectedEntries:
    """The DIDs of a store's items, in their order."""

    needs_network = False

    def __init__(self, config: CollectedSource, field: str, storage: Location) -> None:
        self._field = field
        self._config = config
        self._store = open_store(config.metadata_store, study=config.backfill, storage=storage)
        # DynamoDB has none, and a study in S3 may have its own tables instead.
        self._file = store_path(config.metadata_store, study=config.backfill, storage=storage)
        has_tables = self._file is None and config.metadata_store.type == "sqlite"
        self._tables = StudyStorage(storage / config.backfill) if has_tables else None

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:  # noqa: ARG002  as all sources
        """Yield the DIDs."""
        self._require_file()
        try:
            for dids in self._store.dids():
                for batch in pl.Series("did", dids, pl.String).to_frame().iter_slices(BATCH_ROWS):
                    yield as_entries(batch.to_series())
        except StorageError as error:
            raise SourceError(f"{self.describe()}: {error}") from error

    def describe(self) -> str:
        """Name the study."""
        return f"{self._field}.backfill = {self._config.backfill!r}"

    def stamp(self) -> str | None:
        """Return what changes with the store; None of DynamoDB, where nothing tells without reading it all."""
        self._require_file()
        if self._file is not None:
            return repr(files_stamp([self._file, write_ahead_log(self._file)]))
        return None if self._tables is None else self._tables.version(USER_METADATA_KEY)

    def _require_file(self) -> None:
        if self._file is not None and not self._file.is_file():
            raise self._nothing_noted(self._file.absolute())
        if self._tables is not None and not self._tables.exists(USER_METADATA_KEY):
            raise self._nothing_noted(self._tables.where(USER_METADATA_KEY))

    def _nothing_noted(self, place: Path | str) -> SourceError:
        return SourceError(
            f"{self.describe()}: it has noted no account yet (looked for {place}); run it first"
        )
