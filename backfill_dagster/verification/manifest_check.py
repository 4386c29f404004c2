"""What a study's folder holds, against what its manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.manifest.accounts import SNAPSHOTS_SCHEMA, SnapshotTotals, list_snapshots
from backfill_dagster.manifest.canonical import Told, read_told
from backfill_dagster.manifest.files import FILES_SCHEMA, read_files
from backfill_dagster.manifest.keys import (
    CERTIFICATE_KEY,
    FILES_KEY,
    MANIFEST_FOLDER,
    MANIFEST_KEY,
    PROBLEMS_KEY,
    PROOF_FOLDER,
    SNAPSHOTS_KEY,
    VERDICTS_KEY,
)
from backfill_dagster.manifest.stage_counts import count_attempts
from backfill_dagster.manifest.told_config import config_digest
from backfill_dagster.manifest.written import said_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.config.study import Study

# What may be otherwise where a study is verified: paths, paces, versions. Settings that decide what is in the tables
# show there, for they are built again with those of now.
_MAY_DIFFER = frozenset({"code", "config", "config_sha256", "version"})


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A stored manifest, with the list of files (FILES_SCHEMA) that it was written with.

    So is the list of snapshots, which is stored and not held.
    """

    told: Told
    files: pl.DataFrame


def read_manifest(storage: StudyStorage) -> tuple[StoredManifest | None, list[Found]]:
    """Return the stored manifest if it is whole, and what is wrong with it if it is not."""
    try:
        told = read_told(storage, MANIFEST_KEY)
        for name, key in (("files", FILES_KEY), ("accounts", SNAPSHOTS_KEY)):
            if not storage.exists(key) or storage.sha256(key) != told.content[name]["sha256"]:
                return None, [
                    Found(
                        FileProblem.NO_MANIFEST, key, "it is not the list that the manifest was written with"
                    )
                ]
        [files] = storage.collect([storage.scan([FILES_KEY], FILES_SCHEMA)], [FILES_KEY])
        # Whether it can be read.
        every = listed_snapshots(storage).select(pl.all().null_count())
        storage.collect([every], [SNAPSHOTS_KEY], engine="streaming")
    except (StorageError, KeyError, TypeError) as error:
        return None, [Found(FileProblem.NO_MANIFEST, MANIFEST_KEY, f"{error!s:.200}")]
    found = [
        Found(FileProblem.ADDED, key)
        for key in storage.keys(MANIFEST_FOLDER, "*")
        if key not in (FILES_KEY, SNAPSHOTS_KEY)
    ]
    return StoredManifest(told, files), found


def listed_snapshots(storage: StudyStorage) -> pl.LazyFrame:
    """Return the snapshots (SNAPSHOTS_SCHEMA) that the manifest lists, lazily."""
    return storage.scan([SNAPSHOTS_KEY], SNAPSHOTS_SCHEMA)


def check_files(storage: StudyStorage, manifest: StoredManifest, threads: int) -> list[Found]:
    """Read every file again, and say which are missing, added, or changed."""
    there = read_files(storage, threads)
    both = manifest.files.join(there, on="key", how="full", suffix="_now", coalesce=True).sort("key")
    found = []
    for key, size, sha256, size_now, sha256_now in both.select(
        "key", "bytes", "sha256", "bytes_now", "sha256_now"
    ).iter_rows():
        if sha256_now is None:
            found.append(Found(FileProblem.MISSING, key))
        elif sha256 is None:
            found.append(Found(FileProblem.ADDED, key))
        elif (size, sha256) != (size_now, sha256_now):
            found.append(Found(FileProblem.CHANGED, key, f"{size_now:,} bytes, {size:,} in the manifest"))
    wrong_rows = both.filter(
        pl.col("sha256") == pl.col("sha256_now"), pl.col("rows").ne_missing(pl.col("rows_now"))
    )
    return found + [Found(FileProblem.OTHER_CONTENT, key, "it has other rows") for key in wrong_rows["key"]]


def check_content(study: Study, manifest: StoredManifest, current: Iterable[pl.DataFrame]) -> list[Found]:
    """Say what the manifest tells otherwise than it would be told now, of the same files.

    `current` are the snapshots (`did, pds_host, pack`), in frames.
    """
    storage, totals = StudyStorage(study.location), SnapshotTotals()
    found = []
    if not _are_listed(storage, totals.counted(list_snapshots(storage, current))):
        found.append(Found(FileProblem.OTHER_CONTENT, SNAPSHOTS_KEY, "the snapshots are others"))
    now, told = said_of(study, manifest.files, count_attempts(storage), totals), manifest.told.content
    differing = [name for name in now if name not in _MAY_DIFFER and now[name] != told.get(name)]
    found += [Found(FileProblem.OTHER_CONTENT, MANIFEST_KEY, f"{name} is another") for name in differing]
    found += [
        Found(FileProblem.OTHER_CONTENT, MANIFEST_KEY, f"{name} is not known")
        for name in sorted(told.keys() - now.keys() - {"files", "accounts"})
    ]
    if config_digest(told.get("config", {})) != told.get("config_sha256"):
        found.append(Found(FileProblem.OTHER_CONTENT, MANIFEST_KEY, "config does not have its digest"))
    return found


def _are_listed(storage: StudyStorage, lists: Iterable[pl.DataFrame]) -> bool:
    """Tell whether lists of snapshots, one after the other, are the one that is stored; all are looked at."""
    begun, same = 0, True
    for rows in lists:
        [stored] = storage.collect([listed_snapshots(storage).slice(begun, rows.height)], [SNAPSHOTS_KEY])
        same = same and rows.equals(stored)
        begun += rows.height
    return same and begun == storage.rows(SNAPSHOTS_KEY)


def check_certificate(storage: StudyStorage) -> list[Found]:
    """Say whether what the last verification left was changed since; it is none of the manifest's files."""
    known = (VERDICTS_KEY, PROBLEMS_KEY, CERTIFICATE_KEY)
    stored = storage.keys(PROOF_FOLDER, "*")
    found = [Found(FileProblem.ADDED, key) for key in stored if key not in known]
    if not any(storage.exists(key) for key in known):
        return found
    try:
        content = read_told(storage, CERTIFICATE_KEY).content
        for name, key in (("verdicts", VERDICTS_KEY), ("problems", PROBLEMS_KEY)):
            if not storage.exists(key) or storage.sha256(key) != content[name]["sha256"]:
                found.append(Found(FileProblem.CERTIFICATE, key, "it is not the file of the certificate"))
    except (StorageError, KeyError, TypeError) as error:
        found.append(Found(FileProblem.CERTIFICATE, CERTIFICATE_KEY, f"{error!s:.200}"))
    return found
