"""A folder that a consumer takes batches out of: `<table>/<batch>.parquet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.handoff.batches import StagedBatch, is_batch_file, purge_batch
from backfill_dagster.purge.record_rows import purged_rows

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage


class Outbox:
    """The folder; a batch comes and goes by one rename, for the study as for the consumer.

    `recalled` is the prefix, in the study's folder, to which a purge takes batches back for a moment.
    """

    def __init__(self, storage: StudyStorage, folder: Path, recalled: str) -> None:
        self._storage = storage
        self._folder = folder
        self._recalled = recalled

    def prepare(self) -> None:
        """Make the folder; raises StorageError where no rename from the study's folder reaches."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            is_near = self._folder.stat().st_dev == self._storage.root.stat().st_dev
        except OSError as error:
            raise StorageError.unwritable(self._folder, error) from error
        if not is_near:
            raise StorageError(
                f"{self._folder} is on another disk than {self._storage.root}, so that no batch could be put there in "
                "one step; choose a folder on the same disk, or a consumer of type sqlite"
            )

    def deliver(self, batch: StagedBatch) -> None:
        """Move a batch into the folder in one step."""
        target = self._target(batch)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._storage.path(batch.key).replace(target)
        except OSError as error:
            raise StorageError.unwritable(target, error) from error

    def has_taken(self, batch: StagedBatch) -> bool:  # noqa: ARG002  as a queue
        """Return false: what the folder has taken is not staged any more."""
        return False

    def settle(self, tombstones: Tombstones) -> None:
        """Put back what a purge that was interrupted has taken back, less what is purged."""
        for key in self._storage.keys(self._recalled):
            self._return(StagedBatch.of_key(key), tombstones)

    def purge(self, tombstones: Tombstones) -> tuple[int, int]:
        """Take what is purged out of the batches that lie in the folder; return rows removed, and masked."""
        self.settle(tombstones)
        removed = masked = 0
        for path in sorted(self._folder.glob("*/*.parquet")):
            if not is_batch_file(path.name) or not self._concerns(path, tombstones):
                continue
            batch = StagedBatch.of_key(f"{self._recalled}/{path.parent.name}/{path.name}")
            try:
                # Out of the consumer's reach first: what it takes meanwhile must not come back by a rename.
                self._storage.path(batch.key).parent.mkdir(parents=True, exist_ok=True)
                path.replace(self._storage.path(batch.key))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError.unwritable(path, error) from error
            of_batch = self._return(batch, tombstones)
            removed, masked = removed + of_batch[0], masked + of_batch[1]
        return removed, masked

    def _return(self, batch: StagedBatch, tombstones: Tombstones) -> tuple[int, int]:
        purged = purge_batch(self._storage, batch, tombstones)
        if self._storage.exists(batch.key):
            self.deliver(batch)
        return purged

    def _concerns(self, path: Path, tombstones: Tombstones) -> bool:
        try:
            rows = pl.read_parquet(path, glob=False, hive_partitioning=False)
        except FileNotFoundError:
            return False
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StorageError(
                f"{path} cannot be read: {error}; move it elsewhere, and run the same again"
            ) from error
        if "uri" not in rows.columns:
            return False
        _, removed, masked = purged_rows(rows, tombstones)
        return bool(removed or masked)

    def _target(self, batch: StagedBatch) -> Path:
        return self._folder / batch.table / f"{batch.name}.parquet"
