"""Every file of a study's folder, with its rows, size and digest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.errors import StorageError
from backfill_dagster.frozen.places import FROZEN_FOLDER
from backfill_dagster.manifest.keys import MANIFEST_FOLDER, MANIFEST_KEY, PROOF_FOLDER
from backfill_dagster.repos.packs import PACK_SCHEMA, pack_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backfill_dagster.storage import StudyStorage
    from backfill_dagster.stores.store import StoredObject

# Of files that have not changed since their digests were taken; a manifest is made with it, and never checked by it.
_KNOWN_KEY = ".digests"
# What is in a study's folder and no part of its data, by name or folder, and why.
NOT_COVERED: Mapping[str, str] = {
    ".lock": "is held by the run that has the study",
    ".scratch": "is written and deleted by each run",
    _KNOWN_KEY: "spares the next manifest some work, and is not believed when anything is verified",
    MANIFEST_KEY: "is the manifest itself; the certificate has its digest",
    MANIFEST_FOLDER: "is the manifest's own, which has their digests",
    PROOF_FOLDER: "comes of a verification, and is checked by the next one against its own certificate",
    FROZEN_FOLDER: "holds frozen builds, each with a manifest of its own, against which it is verified",
    "audit_log.parquet": "goes on with each run, also with one that verifies",
    "run_metadata.parquet": "goes on with each run",
    "user_metadata.parquet": "repeats what the store of metadata has noted, and when",
    "monitoring": "goes on with each run",
    "shared": "is made of the dataset for others, and has manifests of its own",
    "handoff": "is taken away by those to whom it is handed",
    "metadata.sqlite": "is shared with others, who may write to it",
    "metadata.sqlite-wal": "belongs to metadata.sqlite",
    "metadata.sqlite-shm": "belongs to metadata.sqlite",
    "metadata.sqlite-journal": "belongs to metadata.sqlite",
}

FILE_COLUMNS: tuple[Column, ...] = (
    Column("key", pl.String(), "Path of the file below the study's folder.", required=True),
    Column("rows", pl.Int64(), "Its rows; null if it is no Parquet file."),
    Column("bytes", pl.Int64(), "Its size.", required=True),
    Column("sha256", pl.String(), "SHA-256 of its bytes, in hex.", required=True),
)
FILES_SCHEMA = schema_of(FILE_COLUMNS)
_KNOWN_SCHEMA = pl.Schema({**FILES_SCHEMA, "version": pl.String()})
_PACKS_AT_ONCE = 64
# Of what a pack tells of a file: whenever that was written.
_ANY_VERSION = ""


class FileState(NamedTuple):
    """A file as it lies there, and what is another whenever it is written."""

    key: str
    rows: int | None
    bytes: int
    sha256: str
    version: str


def covered_files(storage: StudyStorage) -> list[StoredObject]:
    """Return the files of a study that a manifest covers, sorted by key."""
    return storage.everything(NOT_COVERED)


def told_name(key: str) -> str:
    """Return a file's name as it can be stored: bytes that are no text, as systems allow, as numbers."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def list_files(storage: StudyStorage, threads: int) -> pl.DataFrame:
    """Return all covered files (FILES_SCHEMA); those that did not change since the last time are not read again.

    Of a blocks file its pack tells the digest with which it was written: that one is taken if the size is right.
    """
    known = {**_told_by_packs(storage), **_known(storage)}

    def state(file: StoredObject) -> FileState:
        told = known.get(file.key)
        if told is not None and told.bytes == file.bytes and told.version in (file.version, _ANY_VERSION):
            return told._replace(version=file.version)
        return _look_at(storage, file)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(state, covered_files(storage)))
    states = pl.DataFrame(found, schema=_KNOWN_SCHEMA, orient="row")
    storage.write(_KNOWN_KEY, states)
    return states.select(FILES_SCHEMA.names())


def read_files(storage: StudyStorage, threads: int) -> pl.DataFrame:
    """Return all covered files (FILES_SCHEMA), each read whole for it."""
    with ThreadPoolExecutor(threads) as pool:
        states = list(pool.map(lambda file: _look_at(storage, file), covered_files(storage)))
    return pl.DataFrame(states, schema=_KNOWN_SCHEMA, orient="row").select(FILES_SCHEMA.names())


def _look_at(storage: StudyStorage, file: StoredObject) -> FileState:
    sha256 = storage.sha256(file.key)
    return FileState(told_name(file.key), _rows(storage, file.key), file.bytes, sha256, file.version)


def _rows(storage: StudyStorage, key: str) -> int | None:
    if not key.endswith(".parquet"):
        return None
    try:
        return storage.rows(key)
    except StorageError:
        # Also for names of columns that are no text.
        return None


def _known(storage: StudyStorage) -> dict[str, FileState]:
    try:
        rows = storage.collect([storage.scan([_KNOWN_KEY], _KNOWN_SCHEMA)], [_KNOWN_KEY])[0]
    except StorageError:
        return {}
    return {state.key: state for state in map(FileState._make, rows.iter_rows())}


def _told_by_packs(storage: StudyStorage) -> dict[str, FileState]:
    told: dict[str, FileState] = {}
    packs = [key for *_, key in pack_keys(storage)]
    for some in (packs[first : first + _PACKS_AT_ONCE] for first in range(0, len(packs), _PACKS_AT_ONCE)):
        told |= {state.key: state for state in _blocks_files(storage, some)}
    return told


def _blocks_files(storage: StudyStorage, packs: Iterable[str]) -> list[FileState]:
    named = {key: key for key in packs}
    listed = storage.scan_named(named, PACK_SCHEMA, "pack_key").group_by("pack_key")
    [rows] = storage.collect([listed.agg(pl.col("blocks_files").first())], named)
    return [
        FileState(
            f"{key.rpartition('/')[0]}/{file['name']}",
            file["rows"],
            file["bytes"],
            file["sha256"],
            _ANY_VERSION,
        )
        for key, files in rows.iter_rows()
        for file in files or ()
    ]
