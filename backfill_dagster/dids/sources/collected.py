"""The accounts that a study has collected, by its metadata store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.entries import BATCH_ROWS, as_entries
from backfill_dagster.dids.sources.files import files_stamp, write_ahead_log
from backfill_dagster.errors import SourceError, StorageError
from backfill_dagster.metadata_stores.opening import STORE_KEY, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backfill_dagster.config.sources import CollectedSource
    from backfill_dagster.dids.entries import SourceAccess


class CollectedEntries:
    """The DIDs of a store's items, in their order."""

    needs_network = False

    def __init__(self, config: CollectedSource, field: str, storage: Path) -> None:
        self._field = field
        self._config = config
        self._store = open_store(config.metadata_store, study=config.backfill, storage=storage)
        file = config.metadata_store.path or storage / config.backfill / STORE_KEY
        # DynamoDB has none.
        self._file = file if config.metadata_store.type == "sqlite" else None

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
        """Return the file's name, size and time; None of DynamoDB, where nothing tells without reading it all."""
        if self._file is None:
            return None
        self._require_file()
        return repr(files_stamp([self._file, write_ahead_log(self._file)]))

    def _require_file(self) -> None:
        if self._file is not None and not self._file.is_file():
            raise SourceError(
                f"{self.describe()}: it has noted no account yet (looked for {self._file.absolute()}); run it first"
            )
