"""Where a consumer's records were ever put: a purge must find them, whatever the YAML says by then."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster.errors import StorageError
from backfill_dagster.handoff.outbox import Outbox
from backfill_dagster.handoff.queue import Queue, QueueOwner

if TYPE_CHECKING:
    from backfill_dagster.config.integrations import Consumer
    from backfill_dagster.storage import StudyStorage

HANDOFF_FOLDER = "handoff"
_FILE = "places.json"
_QUEUE_TABLE = "queue"
_DIGEST_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where records are put: a folder (`parquet`) or a table of an SQLite file (`sqlite`).

    `path` is None for the place in the study's own folder, which may be moved.
    """

    type: str
    path: str | None
    queue_table: str | None = None

    @classmethod
    def of_consumer(cls, consumer: Consumer) -> Place:
        """Return where a consumer of the YAML takes records from."""
        path = None if consumer.path is None else str(consumer.path.absolute())
        return cls(
            consumer.type, path, (consumer.queue_table or _QUEUE_TABLE) if consumer.type == "sqlite" else None
        )

    def open(
        self, storage: StudyStorage, study: str, consumer: str, records_per_row: int | None = None
    ) -> Outbox | Queue:
        """Return what delivers there; opens nothing."""
        folder = consumer_folder(consumer)
        if self.type == "parquet":
            path = Path(self.path) if self.path else storage.path(f"{folder}/outbox")
            digest = hashlib.sha256((self.path or "").encode()).hexdigest()[:_DIGEST_LENGTH]
            return Outbox(storage, path, f"{folder}/staged", f"{folder}/recalled/{digest}")
        path = Path(self.path) if self.path else storage.path(f"{folder}/queue.sqlite")
        owner = QueueOwner(study, consumer, records_per_row)
        return Queue(storage, path, self.queue_table or _QUEUE_TABLE, owner)


def consumer_folder(consumer: str) -> str:
    """Return where it is noted, in the study's folder, what a consumer has been handed."""
    return f"{HANDOFF_FOLDER}/{consumer}"


def read_places(storage: StudyStorage, consumer: str) -> list[Place]:
    """Return where a consumer's records were ever put; raises StorageError."""
    key = f"{consumer_folder(consumer)}/{_FILE}"
    if not storage.exists(key):
        return []
    try:
        return [Place(**place) for place in json.loads(storage.read_bytes(key))]
    except (ValueError, TypeError) as error:
        raise StorageError(f"{storage.where(key)} cannot be read: {error}") from error


def note_place(storage: StudyStorage, consumer: str, place: Place) -> None:
    """Note where a consumer's records are put, before any is."""
    known = read_places(storage, consumer)
    if place not in known:
        told = json.dumps([asdict(one) for one in (*known, place)])
        storage.write_bytes(f"{consumer_folder(consumer)}/{_FILE}", told.encode())


def places_of_all(storage: StudyStorage) -> dict[str, list[Place]]:
    """Return where the records of every consumer were ever put, also of those that the YAML does not name any more."""
    return {name: read_places(storage, name) for name in storage.folders(HANDOFF_FOLDER)}
