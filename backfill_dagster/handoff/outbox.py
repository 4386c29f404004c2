"""A folder that a consumer takes batches out of: `<table>/<batch>.parquet`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.handoff.batches import StagedBatch, is_batch_file, purge_batch
from backfill_dagster.purge.record_rows import purged_rows
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster.purge.tombstones import Tombstones


_INCOMING = "batches"


class Outbox:
    """The folder; a batch comes and goes by one rename, for the study as for the consumer.

    No rename reaches it from another disk, or from S3. So a study that is stored there brings a batch near first: into
    a folder beside it that ends in `.incoming`, in which no consumer looks.

    `staged` is the prefix at which batches wait in the study's folder, and `recalled` the one to which a purge takes
    them back for a moment, on the folder's disk.
    """

    def __init__(self, storage: StudyStorage, folder: Path, staged: str, recalled: str) -> None:
        self._storage = storage
        self._folder = folder
        self._staged = staged
        self._recalled = recalled

    def prepare(self) -> None:
        """Make the folder; raises StorageError where a folder beside it is on another disk."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._is_near(self._storage):
                beside = self._beside
                beside.folder.mkdir(parents=True, exist_ok=True)
                if not self._is_near(beside):
                    raise StorageError(
                        f"{self._folder} is the top of its disk, so that no batch could be put there in one step; "
                        "choose a folder in it, or a consumer of type sqlite"
                    )
        except OSError as error:
            raise StorageError.unwritable(self._folder, error) from error

    def deliver(self, batch: StagedBatch) -> None:
        """Move a batch into the folder in one step; once it was brought near, it goes on from there."""
        if self._is_near(self._storage):
            self._put(self._storage.path(batch.key), batch)
            return
        near = f"{_INCOMING}/{batch.table}/{batch.name}.parquet"
        with self._storage.local(batch.key) as stored, self._beside.scratch() as scratch:
            copy = shutil.copyfile(stored, scratch / "batch")
            self._beside.publish(copy, near, rows=0)
        self._storage.remove(batch.key)
        self._put(self._beside.path(near), batch)

    def has_taken(self, batch: StagedBatch) -> bool:  # noqa: ARG002  as a queue
        """Return false: what the folder has taken is not staged any more."""
        return False

    def settle(self, tombstones: Tombstones | None) -> None:
        """Put into the folder what an interruption has left beside it, less what is purged."""
        if not self._folder.is_dir():
            if not self._beside.folder.is_dir():
                return
            # The folder is gone, and not what was on its way into it.
            self.prepare()
        near = self._near
        if near is not self._storage:
            # A copy that was broken off names accounts too.
            near.sweep_scratch()
        # What is still staged is delivered from there: who takes it out of the folder meanwhile must not get it twice.
        waiting = set(self._storage.keys(self._staged)) if near is not self._storage else ()
        for key in near.keys(_INCOMING):
            if key.replace(_INCOMING, self._staged, 1) not in waiting:
                self._return(StagedBatch.of_key(key), tombstones)
        for key in near.keys(self._recalled):
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
                recalled = self._near.path(batch.key)
                recalled.parent.mkdir(parents=True, exist_ok=True)
                path.replace(recalled)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError.unwritable(path, error) from error
            of_batch = self._return(batch, tombstones)
            removed, masked = removed + of_batch[0], masked + of_batch[1]
        return removed, masked

    def _return(self, batch: StagedBatch, tombstones: Tombstones | None) -> tuple[int, int]:
        purged = (0, 0) if tombstones is None else purge_batch(self._near, batch, tombstones)
        if self._near.exists(batch.key):
            self._put(self._near.path(batch.key), batch)
        return purged

    def _put(self, path: Path, batch: StagedBatch) -> None:
        target = self._target(batch)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        except OSError as error:
            raise StorageError.unwritable(target, error) from error

    @property
    def _near(self) -> StudyStorage:
        """What lies on the folder's disk: the study, or else the folder beside it."""
        return self._storage if self._is_near(self._storage) else self._beside

    @property
    def _beside(self) -> StudyStorage:
        return StudyStorage(self._folder.with_name(f"{self._folder.name}.incoming"))

    def _is_near(self, storage: StudyStorage) -> bool:
        return storage.keeps_on_disk and self._folder.stat().st_dev == storage.folder.stat().st_dev

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
