"""A folder in which stored files can be made again: links to what they are made of, and room for what is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# Of two tables that are compared: one of all accounts is too large to be held twice.
_ROWS_AT_ONCE = 50_000


def mirror(
    storage: StudyStorage, folder: Path, keys: Iterable[str], unread: Mapping[str, int] | None = None
) -> StudyStorage:
    """Return a storage in a scratch folder with a link to each of these files, or a copy of each that is in S3.

    Links to files, never to folders: whatever is written or removed there touches the link alone. Of files in S3 that
    will not be read, given with their sizes in bytes, only those are there.
    """
    linked = StudyStorage(folder)
    for key in keys:
        linked.mirror(key, storage)
    for key, size in (unread or {}).items():
        if storage.keeps_on_disk:
            linked.mirror(key, storage)
        else:
            linked.stand_in(key, size)
    return linked


def differences(
    storage: StudyStorage, again: StudyStorage, stored_keys: Iterable[str], made_keys: Iterable[str]
) -> list[tuple[str, str]]:
    """Return the stored files that are not those that were made again, with what was seen.

    The same bytes are the same content. Another version of the libraries may write the same rows in other bytes.
    """
    stored, made = set(stored_keys), set(made_keys)
    found = [(key, "it should not be there") for key in sorted(stored - made)]
    found += [(key, "it should be there") for key in sorted(made - stored)]
    for key in sorted(stored & made):
        if storage.sha256(key) != again.sha256(key):
            seen = _difference(storage, again, key)
            if seen is not None:
                found.append((key, seen))
    return found


def _difference(storage: StudyStorage, again: StudyStorage, key: str) -> str | None:
    if not key.endswith(".parquet"):
        return "it has another content"
    try:
        return _difference_of_tables(storage, again, key)
    except (StorageError, pl.exceptions.PanicException):
        return "it cannot be read"


def _difference_of_tables(storage: StudyStorage, again: StudyStorage, key: str) -> str | None:
    schema, rows, made_rows = storage.schema(key), storage.rows(key), again.rows(key)
    if schema != again.schema(key):
        return "it has other columns"
    if rows == made_rows and all(
        _some_rows(storage, key, first).equals(_some_rows(again, key, first))
        for first in range(0, rows, _ROWS_AT_ONCE)
    ):
        return None
    if "uri" not in schema:
        return f"{rows:,} rows for {made_rows:,}, or others"
    stored, made = (
        place.collect([place.scan_as_it_is(key).select("uri")], [key])[0] for place in (storage, again)
    )
    dropped = made.join(stored, on="uri", how="anti").height
    added = stored.join(made, on="uri", how="anti").height
    return f"{dropped:,} rows are dropped, {added:,} added, and {rows:,} there for {made_rows:,}"


def _some_rows(storage: StudyStorage, key: str, first: int) -> pl.DataFrame:
    [rows] = storage.collect([storage.scan_as_it_is(key).slice(first, _ROWS_AT_ONCE)], [key])
    return rows
