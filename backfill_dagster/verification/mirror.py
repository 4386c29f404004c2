"""A folder in which stored files can be made again: links to what they are made of, and room for what is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


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
        stored, made = storage.read(key), again.read(key)
    except (StorageError, pl.exceptions.PanicException):
        return "it cannot be read"
    if stored.equals(made):
        return None
    if stored.schema != made.schema:
        return "it has other columns"
    if "uri" not in stored.columns:
        return f"{stored.height:,} rows for {made.height:,}, or others"
    dropped = made.join(stored, on="uri", how="anti").height
    added = stored.join(made, on="uri", how="anti").height
    return f"{dropped:,} rows are dropped, {added:,} added, and {stored.height:,} there for {made.height:,}"
