"""The embedded store: an SQLite file, of one study or of several."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backfill_dagster.errors import StorageError
from backfill_dagster.metadata_stores.bodies import bounded
from backfill_dagster.metadata_stores.items import RunItem, UserItem
from backfill_dagster.sqlite_files import purged_sqlite, sqlite_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

USERS, RUNS = "user_metadata", "run_metadata"
_TIMEOUT_SECONDS = 30.0
_ROWS_AT_ONCE = 10_000
_USER_FIELDS = tuple(field.name for field in fields(UserItem))
_RUN_FIELDS = tuple(field.name for field in fields(RunItem))
_TABLES = f"""
CREATE TABLE IF NOT EXISTS {USERS} (
    study TEXT NOT NULL, did TEXT NOT NULL, bluesky_handle TEXT NOT NULL, types TEXT NOT NULL,
    total_records INTEGER NOT NULL, total_records_by_type TEXT NOT NULL, pds_service_endpoint TEXT NOT NULL,
    timestamp TEXT NOT NULL, PRIMARY KEY (study, did)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {RUNS} (
    study TEXT NOT NULL, run_id TEXT NOT NULL, service TEXT NOT NULL, timestamp TEXT NOT NULL,
    status_code INTEGER NOT NULL, body TEXT NOT NULL, metadata TEXT NOT NULL, PRIMARY KEY (study, run_id)
) WITHOUT ROWID;
"""


class SqliteStore:
    """The items of one study in the tables `user_metadata` and `run_metadata` of a file."""

    def __init__(self, path: Path, study: str) -> None:
        self._path = path
        self._study = study

    def identity(self) -> str:
        """Name the file."""
        return f"sqlite {self._path.absolute()}"

    def put_users(self, users: Iterable[UserItem]) -> None:
        """Write accounts' items, all or none."""
        self._put(USERS, (astuple(user) for user in users), len(_USER_FIELDS))

    def remove_users(self, dids: Iterable[str]) -> None:
        """Delete accounts' items."""
        with self._open() as database, database:
            database.executemany(
                f"DELETE FROM {USERS} WHERE study = ? AND did = ?",  # noqa: S608  no name comes from outside
                ((self._study, did) for did in dids),
            )

    def users(self) -> Iterator[UserItem]:
        """Yield all accounts' items, by DID."""
        for row in self._rows(USERS, _USER_FIELDS):
            yield UserItem(*row)

    def dids(self) -> Iterator[list[str]]:
        """Yield the DIDs of all accounts."""
        found: list[str] = []
        for (did,) in self._rows(USERS, ("did",)):
            found.append(did)
            if len(found) == _ROWS_AT_ONCE:
                yield found
                found = []
        if found:
            yield found

    def put_runs(self, runs: Iterable[RunItem]) -> None:
        """Write runs' items, all or none."""
        self._put(RUNS, (astuple(bounded(run)) for run in runs), len(_RUN_FIELDS))

    def runs(self) -> Iterator[RunItem]:
        """Yield all runs' items, by run id."""
        for row in self._rows(RUNS, _RUN_FIELDS):
            yield RunItem(*row)

    def has_lost_users(self) -> bool:
        """Tell whether the file has no account's item."""
        return next(self._rows(USERS, ("did",)), None) is None

    def has_lost_runs(self) -> bool:
        """Tell whether the file has no run's item."""
        return next(self._rows(RUNS, ("run_id",)), None) is None

    def erase(self) -> None:
        """Leave nothing in the file's free pages, nor in its log."""
        if self._path.is_file():
            with self._open() as database, purged_sqlite(database):
                pass

    def _put(self, table: str, rows: Iterable[tuple[object, ...]], width: int) -> None:
        places = ", ".join("?" * (width + 1))
        with self._open() as database, database:
            database.executemany(
                f"INSERT OR REPLACE INTO {table} VALUES ({places})",  # noqa: S608
                ((self._study, *row) for row in rows),
            )

    def _rows(self, table: str, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        if not self._path.is_file():
            return
        address = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        with (
            sqlite_errors(self._path),
            closing(sqlite3.connect(address, uri=True, timeout=_TIMEOUT_SECONDS)) as database,
        ):
            cursor = database.execute(
                f"SELECT {', '.join(columns)} FROM {table} WHERE study = ? ORDER BY 1",  # noqa: S608
                (self._study,),
            )
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                yield from rows

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError.unwritable(self._path, error) from error
        with (
            sqlite_errors(self._path),
            closing(sqlite3.connect(self._path, timeout=_TIMEOUT_SECONDS)) as database,
        ):
            database.execute("PRAGMA secure_delete = ON")
            database.executescript(_TABLES)
            yield database
