"""SQLite files that a study writes: what goes wrong with them in its own words, and what a purge leaves of them."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Raise StorageError for whatever SQLite raises."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        advice = "close what else uses it" if "locked" in str(error) else "mend that"
        raise StorageError(
            f"{path} cannot be read or written: {' '.join(str(error).split())}; {advice}, then run the same again: "
            "nothing was changed by halves"
        ) from error


@contextmanager
def purged_sqlite(database: sqlite3.Connection) -> Iterator[None]:
    """Leave nothing of what is deleted in the file: not in its log, nor in free pages, also those from before."""
    database.execute("PRAGMA secure_delete = ON")
    yield
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
