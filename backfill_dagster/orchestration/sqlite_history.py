"""Dagster's history in its own SQLite files, which this process keeps open.

Dagster's own storage opens a file for every event, with an engine that has yet to compile its statements, and closes
it again, at which SQLite writes its log back; the file of a new run it makes table by table. That is most of what an
event costs. Files and tables are the same here, so that either storage reads what the other wrote, at the same time
too. Named in `dagster.yaml`.
"""

from __future__ import annotations

import os
import sqlite3
from collections import OrderedDict
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as db
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from sqlalchemy.pool import StaticPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dagster._core.events.log import EventLogEntry
    from dagster._serdes import ConfigurableClassData
    from sqlalchemy.engine import Connection, Engine

# Files of runs that are open at once: a run, the one that it is part of, and some that are looked at.
_OPEN_RUNS = 8


class SqliteHistory(DagsterSqliteStorage):
    """What `storage: sqlite:` of a `dagster.yaml` stands for, with files that stay open."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        # The parent's own would open the same files beside these.
        super(DagsterSqliteStorage, self).__init__()  # type: ignore[no-untyped-call]
        self.base_dir = base_dir
        self._inst_data = inst_data
        base = Path(base_dir)
        self._run_storage = _Runs.from_local(str(base / "history"))
        self._event_log_storage = _Events(str(base / "history" / "runs"))
        # Of which little is asked, and which nobody would close.
        self._schedule_storage = SqliteScheduleStorage.from_local(str(base / "schedules"))

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> SqliteHistory:
        """Return the storage that a `dagster.yaml` names, with its `base_dir`; Dagster calls this."""
        return cls(config_value["base_dir"], inst_data)


class _Runs(SqliteRunStorage):
    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engine = _open(conn_string)
        super().__init__(conn_string, inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection

    def delete_run(self, run_id: str) -> None:
        super().delete_run(run_id)
        _empty_log(self._engine)

    def dispose(self) -> None:
        self._engine.dispose()


class _Events(SqliteEventLogStorage):
    """The events of each run in a file of its own, and those of assets and of runs' states in one more."""

    def __init__(self, base_dir: str) -> None:
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._tables: str | None = None
        self._columns: set[str] = set()
        super().__init__(base_dir)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            engine = self._engine(shard)
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            with engine.begin() as connection:
                yield connection

    def _initdb(self, engine: Engine, for_index_shard: bool = False) -> None:
        if not (engine.url.database and self._create(Path(engine.url.database))):
            super()._initdb(engine, for_index_shard)

    def _create(self, path: Path) -> bool:
        """Give a new file its tables; return False if there is one, or somebody else is making it.

        To ask Alembic which tables there are to be, and to make one after the other, takes as long as twenty events.
        """
        if path.exists():
            return False
        if self._tables is None:
            self._tables = self._new_tables()
        try:
            with closing(sqlite3.connect(path, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)) as new:
                new.execute("PRAGMA journal_mode=WAL")
                new.executescript(self._tables)
        except sqlite3.OperationalError:
            return False
        return True

    def _new_tables(self) -> str:
        """Return what makes the tables of a new file, as Dagster makes them, in one transaction."""
        model = db.create_engine("sqlite://", poolclass=StaticPool)
        super()._initdb(model)
        with model.connect() as connection:
            made = connection.execute(
                db.text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
            ).scalars()
            revision = connection.execute(db.text("SELECT version_num FROM alembic_version")).scalar_one()
            stamp = f"INSERT INTO alembic_version VALUES ('{revision}')"  # noqa: S608  Dagster's own
            script = ";".join(["BEGIN", *made, stamp, "COMMIT"])
        model.dispose()
        return script

    def _engine(self, shard: str) -> Engine:
        if shard not in self._engines:
            self._engines[shard] = _open(self.conn_string_for_shard(shard))
        self._engines.move_to_end(shard)
        if len(self._engines) > _OPEN_RUNS:
            _, oldest = self._engines.popitem(last=False)
            oldest.dispose()
        return self._engines[shard]

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        # Asked for every event of an asset; a column that is there stays.
        if column_name not in self._columns and super()._has_asset_key_col_on_connection(conn, column_name):
            self._columns.add(column_name)
        return column_name in self._columns

    def store_event(self, event: EventLogEntry) -> None:
        super().store_event(event)
        # The UI shows a run's events as they come by watching this file, which SQLite leaves alone while it is open.
        with suppress(OSError):
            os.utime(self.path_for_shard(event.run_id))

    def delete_events(self, run_id: str) -> None:
        super().delete_events(run_id)
        with self._db_lock:
            for shard in (run_id, INDEX_SHARD_NAME):
                _empty_log(self._engine(shard))

    def wipe(self) -> None:
        self._close()
        super().wipe()

    def dispose(self) -> None:
        super().dispose()
        with self._db_lock:
            self._close()

    def _close(self) -> None:
        while self._engines:
            self._engines.popitem()[1].dispose()


def _open(conn_string: str) -> Engine:
    engine = db.create_engine(conn_string, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})
    db.event.listen(engine, "connect", _set_up)
    return engine


def _empty_log(engine: Engine) -> None:
    """Write SQLite's log back and empty it, as closing the file does: what was deleted lives on in there."""
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _set_up(connection: sqlite3.Connection, _record: Any) -> None:
    # The files are in WAL mode, in which this is as safe against a process that dies; when the machine does, the
    # latest events may be lost, and the file is whole all the same.
    connection.execute("PRAGMA synchronous=NORMAL")
