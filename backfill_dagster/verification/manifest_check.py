"""What a study's folder holds, against what its manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.manifest.accounts import SNAPSHOTS_SCHEMA, list_snapshots
from backfill_dagster.manifest.canonical import read_told
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
from backfill_dagster.manifest.told_config import config_digest
from backfill_dagster.manifest.written import Manifest, said_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

# What may be otherwise where a study is verified: paths, paces, versions. Settings that decide what is in the tables
# show there, for they are built again with those of now.
_MAY_DIFFER = frozenset({"code", "config", "config_sha256", "version"})


def read_manifest(storage: StudyStorage) -> tuple[Manifest | None, list[Found]]:
    """Return the stored manifest if it is whole, and what is wrong with it if it is not."""
    lists = {"files": (FILES_KEY, FILES_SCHEMA), "accounts": (SNAPSHOTS_KEY, SNAPSHOTS_SCHEMA)}
    try:
        told = read_told(storage, MANIFEST_KEY)
        frames = []
        for name, (key, schema) in lists.items():
            if not storage.exists(key) or storage.sha256(key) != told.content[name]["sha256"]:
                return None, [
                    Found(
                        FileProblem.NO_MANIFEST, key, "it is not the list that the manifest was written with"
                    )
                ]
            frames += storage.collect([storage.scan([key], schema)], [key])
    except (StorageError, KeyError, TypeError) as error:
        return None, [Found(FileProblem.NO_MANIFEST, MANIFEST_KEY, f"{error!s:.200}")]
    found = [
        Found(FileProblem.ADDED, key)
        for key in storage.keys(MANIFEST_FOLDER, "*")
        if key not in (FILES_KEY, SNAPSHOTS_KEY)
    ]
    return Manifest(told, *frames), found


def check_files(storage: StudyStorage, manifest: Manifest, threads: int) -> list[Found]:
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


def check_content(study: Study, manifest: Manifest, current: pl.DataFrame) -> list[Found]:
    """Say what the manifest tells otherwise than it would be told now, of the same files."""
    storage = StudyStorage(study.location)
    accounts = list_snapshots(storage, current)
    found = []
    if not accounts.equals(manifest.snapshots):
        found.append(Found(FileProblem.OTHER_CONTENT, SNAPSHOTS_KEY, "the snapshots are others"))
    now, told = said_of(study, manifest.files, accounts), manifest.told.content
    differing = [name for name in now if name not in _MAY_DIFFER and now[name] != told.get(name)]
    found += [Found(FileProblem.OTHER_CONTENT, MANIFEST_KEY, f"{name} is another") for name in differing]
    found += [
        Found(FileProblem.OTHER_CONTENT, MANIFEST_KEY, f"{name} is not known")
        for name in sorted(told.keys() - now.keys() - {"files", "accounts"})
    ]
    if config_digest(told.get("config", {})) != told.get("config_sha256"):
        found.append(Found(FileProblem.OTHER_CONTENT, MANIFEST_KEY, "config does not have its digest"))
    return found


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
