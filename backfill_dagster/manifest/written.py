"""Makes a study's manifest and stores it: `manifest.json`, and beside it the lists of its files and its snapshots."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from backfill_dagster.dictionary.written import DESCRIPTOR_KEY, write_dictionary
from backfill_dagster.errors import StorageError
from backfill_dagster.manifest.accounts import list_snapshots
from backfill_dagster.manifest.canonical import Told, read_told, write_told
from backfill_dagster.manifest.files import NOT_COVERED, list_files
from backfill_dagster.manifest.keys import FILES_KEY, MANIFEST_KEY, PROOF_FOLDER, SNAPSHOTS_KEY
from backfill_dagster.manifest.told_config import config_digest, told_config
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.repos.snapshots import latest_attempts
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    SOURCE_REJECTS_KEY,
    current_snapshots,
)
from backfill_dagster.tables.accounts import reason_totals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.config.study import Study

# Raised whenever the same study would give another manifest.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says: `told`, and the lists of files (FILES_SCHEMA) and of snapshots (SNAPSHOTS_SCHEMA)."""

    told: Told
    files: pl.DataFrame
    snapshots: pl.DataFrame


def write_manifest(study: Study, run_ids: Sequence[str] = ()) -> Manifest:
    """Store the manifest of what the study's folder holds now; `run_ids` are Dagster's of the runs that made it.

    The same files and settings give the same manifest but for its `made`.
    """
    storage = StudyStorage(study.location)
    # It is one of the files.
    write_dictionary(study)
    files = list_files(storage, study.processing.worker_count)
    accounts = list_snapshots(storage, current_snapshots(study))
    lists = [storage.write(FILES_KEY, files), storage.write(SNAPSHOTS_KEY, accounts)]
    described = {
        name: {"file": stored.key, "rows": stored.rows, "bytes": stored.bytes, "sha256": stored.sha256}
        for name, stored in zip(("files", "accounts"), lists, strict=True)
    }
    made = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "dagster_runs": sorted(set(run_ids))}
    told = Told({**said_of(study, files, accounts), **described}, made)
    # Last: without it the lists are none.
    write_told(storage, MANIFEST_KEY, told)
    return Manifest(told, files, accounts)


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


def said_of(study: Study, files: pl.DataFrame, accounts: pl.DataFrame) -> dict[str, Any]:
    """Return what a manifest says besides its lists."""
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
        "stages": stage_counts(study, files, accounts),
        "totals": {"files": files.height, "bytes": int(files["bytes"].sum())},
        "not_covered": dict(NOT_COVERED),
    }


def stage_counts(study: Study, files: pl.DataFrame, accounts: pl.DataFrame) -> dict[str, Any]:
    """Return what went into each stage and what came out of it, from what is stored."""
    storage = StudyStorage(study.location)
    told: dict[str, Any] = {}
    if storage.exists(SOURCE_KEY) and storage.exists(SOURCE_REJECTS_KEY):
        kept, left_out = storage.read(SOURCE_KEY).height, storage.read(SOURCE_REJECTS_KEY)
        told["source_dids"] = {
            "in": kept + left_out.height,
            "out": kept,
            "left_out": _by(left_out, "reason"),
        }
    directory = storage.read(DIRECTORY_KEY)
    told["directory"] = {"in": directory.height, "out": _by(directory, "state")}
    attempts = latest_attempts(read_ledger(storage))
    told["repos"] = {
        "in": directory.filter(pl.col("state") == "resolved").height,
        "latest_attempts": _by(attempts, "outcome"),
        "failures": _by(attempts.filter(pl.col("outcome") == Outcome.FAILED.value), "reason"),
        "snapshots": accounts.height,
        "records": int(accounts["records"].sum()),
        "purged": int(accounts["purged"].sum()),
        "masked": int(accounts["masked"].sum()),
    }
    if storage.exists(ACCOUNTS_KEY):
        rows = storage.read(ACCOUNTS_KEY)
        told["records"] = {
            "in": int(rows["records_fetched"].sum()),
            "kept": int(rows["records_kept"].sum()),
            **{fate: dict(reason_totals(rows, fate).iter_rows()) for fate in ("filtered", "rejected")},
        }
        told["accounts"] = {"in": rows.height, "out": _by(rows, "state")}
    told["tables"] = {folder: _rows_below(files, folder) for folder in ("tables", "undated", "derived")}
    return told


def _by(rows: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(sorted(Counter(rows[column].fill_null("none")).items()))


def _rows_below(files: pl.DataFrame, folder: str) -> dict[str, int]:
    below = files.filter(pl.col("key").str.starts_with(f"{folder}/"))
    table = pl.col("key").str.split("/").list.get(1)
    return dict(below.group_by(table).agg(pl.col("rows").sum()).sort("key").iter_rows())
