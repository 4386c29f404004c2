"""Takes what has a tombstone out of what was shared, and out of what became of it.

Of shared ids the rows go, and the manifest is written anew. Under pseudonyms nobody can tell who is who without the
secret, which is not stored: there all goes that was shared, and `<name>_share` writes it again of whom is left. Copies
that others have are beyond reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq

from backfill_dagster.errors import StorageError
from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.records.filter_lists import without_purged
from backfill_dagster.sharing.rehydration import REHYDRATION_KEY, REHYDRATION_SCHEMA
from backfill_dagster.sharing.shared_folder import (
    ACCOUNTS,
    SHARED_FOLDER,
    SHARED_MANIFEST,
    SharedIds,
    table_file,
)
from backfill_dagster.storage import RowGroupWriter, arrow_table

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """A file of a shared folder without what is purged, in scratch."""

    path: Path
    rows: int
    removed: int


def purge_shared(storage: StudyStorage, tombstones: Tombstones) -> dict[str, int]:
    """Purge every shared folder of a study, and its table `rehydration`.

    Returns the rows that were removed (`shared`, `rehydration`) and the folders that were removed whole
    (`shared_whole`).
    """
    rows = whole = 0
    for label in storage.folders(SHARED_FOLDER):
        folder = f"{SHARED_FOLDER}/{label}"
        removed = _purge_ids(storage, folder, tombstones)
        if removed is None:
            whole += 1
            _remove(storage, folder)
        else:
            rows += removed
    return {"shared": rows, "shared_whole": whole, "rehydration": _purge_rehydration(storage, tombstones)}


def _purge_ids(storage: StudyStorage, folder: str, tombstones: Tombstones) -> int | None:
    """Purge a folder of shared ids and return the rows removed; None if it is none, or not whole."""
    try:
        shared = SharedIds.open(storage.root / folder)
        shared.check([ACCOUNTS, *shared.tables])
    except StorageError:
        return None
    with storage.scratch() as scratch:
        rewritten = {
            table: _rewrite(storage, f"{folder}/{table_file(table)}", scratch / table_file(table), tombstones)
            for table in (ACCOUNTS, *shared.tables)
        }
        if not any(file.removed for file in rewritten.values()):
            return 0
        # Without it the folder counts as unfinished, and is removed whole by the next attempt.
        storage.remove(f"{folder}/{SHARED_MANIFEST}")
        files = dict(shared.content["files"])
        for table, file in rewritten.items():
            stored = storage.publish(file.path, f"{folder}/{table_file(table)}", rows=file.rows)
            files[table_file(table)] = {"rows": stored.rows, "bytes": stored.bytes, "sha256": stored.sha256}
    content = {**shared.content, "files": files, ACCOUNTS: rewritten[ACCOUNTS].rows}
    write_told(storage, f"{folder}/{SHARED_MANIFEST}", Told(content, {}))
    return sum(file.removed for file in rewritten.values())


def _rewrite(storage: StudyStorage, key: str, target: Path, tombstones: Tombstones) -> _Rewritten:
    """Copy a file without what is purged, row group by row group."""
    rows = removed = 0
    with storage.local(key) as path, pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        with RowGroupWriter(target, schema.remove_metadata(), ()) as writer:
            for number in range(file.num_row_groups):
                group = file.read_row_group(number)
                stays = _stays(pl.DataFrame(group), tombstones)
                rows += stays.height
                removed += group.num_rows - stays.height
                writer.write(arrow_table(stays).cast(schema.remove_metadata()))
    return _Rewritten(target, rows, removed)


def _stays(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    if "uri" not in rows.columns:
        return rows.filter(~pl.col("did").is_in(tombstones.held_among(rows["did"])))
    entry = pl.col("uri")
    did = entry.str.splitn("/", 5).struct.field("field_2")
    return without_purged(rows.with_columns(did=did, entry=entry), tombstones).select(rows.columns)


def _remove(storage: StudyStorage, folder: str) -> None:
    # First what says that it is whole.
    storage.remove(f"{folder}/{SHARED_MANIFEST}")
    for key in storage.keys(folder, "*"):
        storage.remove(key)
    storage.remove_empty_folders(SHARED_FOLDER)


def _purge_rehydration(storage: StudyStorage, tombstones: Tombstones) -> int:
    """Remove the table if it names anybody or anything purged, since it is made again; returns how many such rows."""
    if not storage.exists(REHYDRATION_KEY):
        return 0
    told = storage.scan([REHYDRATION_KEY], REHYDRATION_SCHEMA).select("did", entry="uri")
    [rows] = storage.collect([told], [REHYDRATION_KEY])
    removed = rows.height - without_purged(rows, tombstones).height
    if removed:
        storage.remove(REHYDRATION_KEY)
    return removed
