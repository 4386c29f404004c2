"""Makes a study's manifest and stores it: `manifest.json`, and beside it the lists of its files and its snapshots."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from backfill_dagster.dictionary.written import DESCRIPTOR_KEY, write_dictionary
from backfill_dagster.errors import StorageError
from backfill_dagster.manifest.accounts import SNAPSHOTS_SCHEMA, SnapshotTotals, list_snapshots
from backfill_dagster.manifest.canonical import Told, read_told, write_told
from backfill_dagster.manifest.files import NOT_COVERED, list_files
from backfill_dagster.manifest.keys import FILES_KEY, MANIFEST_KEY, PROOF_FOLDER, SNAPSHOTS_KEY
from backfill_dagster.manifest.stage_counts import AttemptTotals, stage_counts
from backfill_dagster.manifest.told_config import config_digest, told_config
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.repos.snapshots import snapshots
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import account_lots

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.config.study import Study

# Raised whenever the same study would give another manifest.
_VERSION = 1


def write_manifest(study: Study, run_ids: Sequence[str] = ()) -> Told:
    """Store the manifest of what the study's folder holds now; `run_ids` are Dagster's of the runs that made it.

    The same files and settings give the same manifest but for its `made`.
    """
    storage = StudyStorage(study.location)
    # It is one of the files.
    write_dictionary(study)
    files = list_files(storage, study.processing.worker_count)
    attempts, totals = AttemptTotals(), SnapshotTotals()
    accounts = totals.counted(list_snapshots(storage, _current(study, attempts)))
    lists = {
        "files": storage.write(FILES_KEY, files),
        "accounts": storage.write_parts(SNAPSHOTS_KEY, accounts, SNAPSHOTS_SCHEMA),
    }
    described = {
        name: {"file": stored.key, "rows": stored.rows, "bytes": stored.bytes, "sha256": stored.sha256}
        for name, stored in lists.items()
    }
    made = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "dagster_runs": sorted(set(run_ids))}
    told = Told({**said_of(study, files, attempts, totals), **described}, made)
    # Last: without it the lists are none.
    write_told(storage, MANIFEST_KEY, told)
    return told


def _current(study: Study, attempts: AttemptTotals) -> Iterator[pl.DataFrame]:
    """Yield the snapshots of some accounts after the others', and count the attempts of which they are chosen."""
    for lot in account_lots(study):
        attempts.add(lot.ledger)
        yield snapshots(lot.directory, lot.ledger)


def manifest_runs(storage: StudyStorage) -> list[str]:
    """Return Dagster's identifiers of the runs that made what the stored manifest is of; none if there is none."""
    try:
        return [str(run) for run in read_told(storage, MANIFEST_KEY).made["dagster_runs"]]
    except (StorageError, KeyError, TypeError):
        return []


def remove_manifest(storage: StudyStorage) -> None:
    """Delete the manifest and its lists, which name accounts."""
    for key in (MANIFEST_KEY, FILES_KEY, SNAPSHOTS_KEY):
        storage.remove(key)


def remove_proof(storage: StudyStorage) -> None:
    """Delete what the last verification left, which names accounts."""
    for key in storage.keys(PROOF_FOLDER, "*"):
        storage.remove(key)


def said_of(
    study: Study, files: pl.DataFrame, attempts: AttemptTotals, totals: SnapshotTotals
) -> dict[str, Any]:
    """Return what a manifest says besides its lists; `files` is the one of them (FILES_SCHEMA)."""
    config = told_config(study)
    return {
        "manifest_version": _VERSION,
        "study": study.name,
        "version": study.version,
        "config": config,
        "config_sha256": config_digest(config),
        "code": {
            "backfill_dagster": code_version(),
            "python": platform.python_version(),
            "polars": pl.__version__,
            "pyarrow": pa.__version__,
        },
        "schema": {
            "file": DESCRIPTOR_KEY,
            "form": "resources with a schema as of https://datapackage.org/standard/table-schema/",
        },
        "stages": stage_counts(study, files, attempts, totals),
        "totals": {"files": files.height, "bytes": int(files["bytes"].sum())},
        "not_covered": dict(NOT_COVERED),
    }
