"""Takes what has a tombstone out of what was seen over time.

Files are removed whole: they are made of packs and of the directory, which a purge rewrites, and are made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.survivorship.pack_contents import RECORD
from backfill_dagster.survivorship.stored import (
    ACCOUNT_HISTORY_KEY,
    FOLDER,
    RECORD_CHANGES_FOLDER,
    discard,
)

if TYPE_CHECKING:
    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage


def purge_observations(storage: StudyStorage, tombstones: Tombstones) -> dict[str, int]:
    """Remove the files that hold anything purged; returns how many such rows the tables had, by table."""
    changes = _purge_files(storage, storage.keys(RECORD_CHANGES_FOLDER), tombstones)
    history = [ACCOUNT_HISTORY_KEY] if storage.exists(ACCOUNT_HISTORY_KEY) else []
    told = {"record_changes": changes, "account_history": _purge_files(storage, history, tombstones)}
    _purge_files(storage, storage.keys(FOLDER), tombstones)
    # The host of a PDS for one person names that person.
    storage.remove_empty_folders(FOLDER)
    return told


def _purge_files(storage: StudyStorage, keys: list[str], tombstones: Tombstones) -> int:
    counts = {key: _count(storage, key, tombstones) for key in keys}
    discard(storage, [key for key, number in counts.items() if number])
    return sum(counts.values())


def _count(storage: StudyStorage, key: str, tombstones: Tombstones) -> int:
    """Count the rows of purged accounts, of purged records, and of those whose key or value names the purged."""
    try:
        present = storage.schema(key)
    except StorageError:
        # It is made again; who stands in it nobody can tell.
        return 1
    chosen = {name: pl.String() for name in (*RECORD, "value") if name in present}
    [rows] = storage.collect([storage.scan([key], chosen)], [key])
    of_purged = rows["did"].is_in(tombstones.held_among(rows["did"]))
    others = rows.filter(~of_purged)
    count = int(of_purged.sum())
    if "rkey" in chosen:
        return count + len(tombstones.withheld_rows(*(others[name].to_list() for name in RECORD)))
    if "value" in chosen:
        return count + sum(tombstones.named_in(value) for value in others["value"].drop_nulls().unique())
    return count
