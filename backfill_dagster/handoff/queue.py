"""A queue table in an SQLite file, which a consumer works off: `id, payload, metadata, created_at, status`."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.handoff.batches import created_at_of
from backfill_dagster.purge.record_rows import without_purged_records
from backfill_dagster.sqlite_files import purged_sqlite, sqlite_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill_dagster.handoff.batches import StagedBatch
    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage

PENDING = "pending"
_COLUMNS = ("id", "payload", "metadata", "created_at", "status")
_BATCHES = "handed_over_batches"
_TIMEOUT_SECONDS = 30.0
_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class QueueOwner:
    """Whose rows they are, and how many records stand in one: by None a single one, and no list."""

    study: str
    consumer: str
    records_per_row: int | None = None


class Queue:
    """The queue; a batch comes by one transaction, with its name, so that it comes once.

    A table that is there already is added to as it is: the previous system's, or that of another study. Ids ascend in
    the order of delivery, by which consumers ask for what is new. Raises StorageError.
    """

    def __init__(self, storage: StudyStorage, path: Path, table: str, owner: QueueOwner) -> None:
        self._storage = storage
        self._path = path
        # Also one that is a word of SQL's.
        self._table = f'"{table}"'
        self._name = table
        self._owner = owner

    def prepare(self) -> None:
        """Make the file and its tables; raises StorageError for a table that lacks a column."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError.unwritable(self._path, error) from error
        with self._open() as database:
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table} (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, "
                f"metadata TEXT, created_at TEXT, status TEXT DEFAULT '{PENDING}')"
            )
            database.execute(
                f"CREATE TABLE IF NOT EXISTS {_BATCHES} (batch TEXT PRIMARY KEY, rows INTEGER, created_at TEXT)"
            )
            there = {
                name: (kind.upper(), key)
                for _, name, kind, _, _, key in database.execute(f"PRAGMA table_info({self._table})")
            }
        lacking = [name for name in _COLUMNS if name not in there]
        if lacking:
            raise StorageError(
                f"{self._path}: its table {self._name} has no column {lacking[0]}; name another by `queue_table`"
            )
        if there["id"] != ("INTEGER", 1):
            raise StorageError(
                f"{self._path}: the column id of its table {self._name} is not INTEGER PRIMARY KEY, so that rows would "
                "have none; name another by `queue_table`"
            )

    def deliver(self, batch: StagedBatch) -> None:
        """Add a batch's rows, unless they were added before, and let what was staged go."""
        rows, created_at = self._storage.read(batch.key), created_at_of(self._storage, batch)
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            noted = database.execute(
                f"INSERT OR IGNORE INTO {_BATCHES} VALUES (?, ?, ?)",  # noqa: S608  no name comes from outside
                (batch.name, rows.height, created_at),
            )
            if noted.rowcount:
                database.executemany(
                    f"INSERT INTO {self._table} (payload, metadata, created_at, status) VALUES (?, ?, ?, ?)",  # noqa: S608
                    (
                        (payload, metadata, created_at, PENDING)
                        for payload, metadata in self._texts(batch, rows)
                    ),
                )
            database.execute("COMMIT")
        self._storage.remove(batch.key)

    def has_taken(self, batch: StagedBatch) -> bool:
        """Tell whether a batch was added, whatever became of its rows."""
        if not self._path.is_file():
            return False
        with self._open() as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_BATCHES,)).fetchall():
                return False
            asked = f"SELECT 1 FROM {_BATCHES} WHERE batch = ?"  # noqa: S608  no name comes from outside
            return bool(database.execute(asked, (batch.name,)).fetchall())

    def settle(self, tombstones: Tombstones | None) -> None:
        """Leave all as it is: a transaction that was interrupted has changed nothing."""

    def purge(self, tombstones: Tombstones) -> tuple[int, int]:
        """Take what is purged out of the rows that this study added; return records removed, and rows masked."""
        if not self._path.is_file():
            return 0, 0
        removed = masked = 0
        with self._open() as database, purged_sqlite(database):
            there = {name for _, name, *_ in database.execute(f"PRAGMA table_info({self._table})")}
            if not there.issuperset(_COLUMNS):
                return 0, 0
            database.execute("BEGIN IMMEDIATE")
            for row, payload, metadata in self._own_rows(database):
                kept, gone = _without_purged(payload, tombstones)
                removed += gone
                if kept is None:
                    database.execute(f"DELETE FROM {self._table} WHERE id = ?", (row,))  # noqa: S608
                    continue
                told = (tombstones.mask(kept), _counted(metadata, kept) if gone else metadata)
                if told != (payload, metadata):
                    masked += told[0] != kept
                    database.execute(
                        f"UPDATE {self._table} SET payload = ?, metadata = ? WHERE id = ?",  # noqa: S608
                        (*told, row),
                    )
            database.execute("COMMIT")
        return removed, masked

    def _texts(self, batch: StagedBatch, rows: pl.DataFrame) -> Iterator[tuple[str, str]]:
        size = self._owner.records_per_row or 1
        about = {
            "backfill": self._owner.study,
            "consumer": self._owner.consumer,
            "table": batch.table,
            "batch": batch.name,
            "batch_size": size,
        }
        left = rows.iter_rows(named=True)
        while records := list(islice(left, size)):
            payload: Any = records if self._owner.records_per_row else records[0]
            metadata = {**about, "actual_batch_size": len(records)}
            yield orjson.dumps(payload).decode(), orjson.dumps(metadata).decode()

    def _own_rows(self, database: sqlite3.Connection) -> Iterator[tuple[int, str, str]]:
        """Yield the rows, some at a time, that this study has added; whatever their status is by now."""
        last = -1
        while True:
            rows = database.execute(
                f"SELECT id, payload, metadata FROM {self._table} WHERE id > ? ORDER BY id LIMIT {_ROWS_AT_ONCE}",  # noqa: S608
                (last,),
            ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            for row, payload, metadata in rows:
                if _told(metadata).get("backfill") == self._owner.study and isinstance(payload, str):
                    yield row, payload, metadata

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with (
            sqlite_errors(self._path),
            closing(
                # Transactions are begun and ended by name.
                sqlite3.connect(self._path, timeout=_TIMEOUT_SECONDS, isolation_level=None)
            ) as database,
        ):
            yield database


def _told(metadata: object) -> dict[str, Any]:
    try:
        told = orjson.loads(metadata) if isinstance(metadata, str) else None
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


def _without_purged(payload: str, tombstones: Tombstones) -> tuple[str | None, int]:
    """Return a payload without the records that are purged, None if none is left; and how many those were."""
    if not (tombstones.named_in(payload) or tombstones.record_named_in(payload)):
        return payload, 0
    try:
        told = orjson.loads(payload)
    except orjson.JSONDecodeError:
        # Its consumer has made something else of it: what is named there is masked.
        return payload, 0
    records = told if isinstance(told, list) else [told]
    uris = [record.get("uri") if isinstance(record, dict) else None for record in records]
    frame = pl.DataFrame(
        {"uri": uris, "place": range(len(uris))}, schema={"uri": pl.String, "place": pl.Int64}
    )
    places = set(without_purged_records(frame, tombstones)["place"])
    kept = [record for place, record in enumerate(records) if place in places]
    gone = len(records) - len(kept)
    if not kept:
        return None, gone
    return (orjson.dumps(kept).decode() if gone else payload), gone


def _counted(metadata: str, payload: str) -> str:
    return orjson.dumps({**_told(metadata), "actual_batch_size": len(orjson.loads(payload))}).decode()
