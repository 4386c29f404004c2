"""The audit log: one row for each run of a study, whoever or whatever started it, and whatever became of it.

A run that is under way has a note of its own, which its process holds; so one whose process is gone is found by the
next run, and its row says that it died. No row names an account.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.account_names import without_accounts
from backfill_dagster.stores.living_note import abandoned_note, make_living_note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backfill_dagster.storage import StudyStorage
    from backfill_dagster.stores.living_note import LivingNote

AUDIT_LOG_KEY = "audit_log.parquet"
FOLDER = "monitoring/runs"
_SUFFIX = ".jsonl"
_MAX_REASON = 2_000
GONE = "The process of this run is gone."


class RunStatus(ClosedSet):
    """How a run stands, or how it ended."""

    RUNNING = "running", "It is under way; or its process was killed, and no run has begun since."
    SUCCESS = "success", "It did all that it was to do."
    FAILED = "failed", "It ended with an error; `reason` says which.", "Run the same again to go on."
    CANCELED = "canceled", "Somebody ended it; what was done is kept.", "Run the same again to go on."
    DIED = "died", "Its process was killed, or its machine went down.", "Run the same again to go on."


AUDIT_COLUMNS = (
    Column("run_id", pl.String(), "Dagster's identifier of the run.", required=True),
    Column(
        "job", pl.String(), "The job that was run; `__ASSET_JOB` if single assets were chosen.", required=True
    ),
    Column(
        "stages",
        pl.List(pl.String()),
        "The stages that it began, by their assets' names, in order.",
        required=True,
    ),
    Column(
        "started_by",
        pl.String(),
        "Who or what started it: `ui`, `schedule <name>`, `sensor <name>`, `automation`, `backfill <id>`, what the "
        "tag `backfill_dagster/started_by` says, or `command line <user>@<machine>`.",
        required=True,
    ),
    Column("started_at", pl.Datetime("us", "UTC"), "When it began.", required=True),
    Column("ended_at", pl.Datetime("us", "UTC"), "When it ended; null while it runs, and if it died."),
    Column("status", pl.String(), "How it stands, or how it ended.", required=True, words=(RunStatus,)),
    Column("reason", pl.String(), "Why it did not succeed."),
    Column(
        "config_hash", pl.String(), "First 16 digits of the SHA-256 of the validated YAML.", required=True
    ),
    Column(
        "code_version",
        pl.String(),
        "This package's version, with the commit if it runs from a checkout: `0.1.0+git.<commit>`.",
        required=True,
    ),
    Column(
        "settings",
        pl.String(),
        "What this run was given that differs from the YAML, as JSON by step; of accounts and records only how many.",
    ),
    Column("accounts_asked", pl.Int64(), "Accounts that its fetch settled or failed on."),
    Column("accounts_complete", pl.Int64(), "Of these, those that are complete, newly or as they were."),
    Column("accounts_failed", pl.Int64(), "Of these, those that failed."),
    Column("records_fetched", pl.Int64(), "Records of the repositories that its fetch stored."),
    Column("records_kept", pl.Int64(), "Records that its conversion kept, of those that it read."),
    Column("records_filtered", pl.Int64(), "Records that its conversion left out by the study's choice."),
    Column("records_rejected", pl.Int64(), "Records that its conversion could make no row of."),
    Column(
        "rows_by_table",
        pl.String(),
        "Rows of each table after it, as JSON; of those tables that it brought up to date.",
    ),
    Column("counts", pl.String(), "What else its stages counted, as JSON by stage."),
)
AUDIT_SCHEMA = schema_of(AUDIT_COLUMNS)
# What the stages count that has a column.
_COUNTED = (
    *("accounts_asked", "accounts_complete", "accounts_failed"),
    *("records_fetched", "records_kept", "records_filtered", "records_rejected"),
)


@dataclass(slots=True)
class AuditEntry:
    """What is known of a run; `counts` and `rows` grow while it works."""

    run_id: str
    job: str
    started_by: str
    started_at: datetime
    config_hash: str
    code_version: str
    settings: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    ended_at: datetime | None = None
    status: RunStatus = RunStatus.RUNNING
    reason: str | None = None

    def count(self, stage: str, counts: Mapping[str, int]) -> None:
        """Add what a stage has counted."""
        of_stage = self.counts.setdefault(stage, {})
        for name, number in counts.items():
            of_stage[name] = of_stage.get(name, 0) + number

    def row(self) -> dict[str, Any]:
        """Return the row of the audit log."""
        totals: dict[str, int | None] = dict.fromkeys(_COUNTED)
        others: dict[str, dict[str, int]] = {}
        for stage, counts in self.counts.items():
            for name, number in counts.items():
                if name in totals:
                    totals[name] = (totals[name] or 0) + number
                else:
                    others.setdefault(stage, {})[name] = number
        reason = None if self.reason is None else without_accounts(self.reason)[:_MAX_REASON]
        return {
            "run_id": self.run_id,
            "job": self.job,
            "stages": self.stages,
            "started_by": without_accounts(self.started_by),
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "status": self.status.value,
            "reason": reason,
            "config_hash": self.config_hash,
            "code_version": self.code_version,
            "settings": _json(self.settings),
            **totals,
            "rows_by_table": _json(self.rows),
            "counts": _json(others),
        }


class OpenRun:
    """A run that is under way, with a note of it that stands for as long as the process lives that made it."""

    def __init__(self, log: AuditLog, entry: AuditEntry, note: LivingNote) -> None:
        self.entry = entry
        self._log = log
        self._note = note

    def begin_stage(self, stage: str) -> None:
        """Note that a stage begins, so that a run that is killed leaves word of it; raises StorageError."""
        if stage not in self.entry.stages:
            self.entry.stages.append(stage)
            self._note.add({"stages": self.entry.stages})

    def finish(self, status: RunStatus, reason: str | None, ended_at: datetime) -> pl.DataFrame:
        """Write the run's final row, and return the whole log; raises StorageError."""
        self.entry.status, self.entry.reason, self.entry.ended_at = status, reason, ended_at
        try:
            # If the log cannot be written, for want of room, the next run finds here how this one has ended.
            with suppress(StorageError):
                self._note.add(_end_of(self.entry))
            return self._log.close(self.entry)
        finally:
            self._note.close()


class AuditLog:
    """The audit log of one study; every method raises StorageError."""

    def __init__(self, storage: StudyStorage) -> None:
        self._storage = storage

    def begin(self, entry: AuditEntry) -> tuple[OpenRun, list[AuditEntry]]:
        """Put a run on the log, and mark those as dead whose processes are gone; returns these as well."""
        with self._storage.alone(FOLDER):
            dead = self._dead_runs()
            note = make_living_note(self._storage.root, _key(entry.run_id), _begin_of(entry))
            self._write([*dead, entry])
            for one in dead:
                self._storage.remove(_key(one.run_id))
        return OpenRun(self, entry, note), [one for one in dead if one.status is RunStatus.DIED]

    def close(self, entry: AuditEntry) -> pl.DataFrame:
        """Write a run's final row, and return the whole log."""
        with self._storage.alone(FOLDER):
            rows = self._write([entry])
            self._storage.remove(_key(entry.run_id))
        return rows

    def read(self) -> pl.DataFrame:
        """Return the log, oldest run first; columns that were added since are null in what was written before."""
        if not self._storage.exists(AUDIT_LOG_KEY):
            return AUDIT_SCHEMA.to_frame()
        scan = self._storage.scan([AUDIT_LOG_KEY], AUDIT_SCHEMA)
        return self._storage.collect([scan], [AUDIT_LOG_KEY])[0]

    def _write(self, entries: list[AuditEntry]) -> pl.DataFrame:
        new = pl.DataFrame([entry.row() for entry in entries], schema=AUDIT_SCHEMA)
        old = self.read().join(new, on="run_id", how="anti")
        rows = pl.concat([old, new]).sort("started_at", "run_id")
        self._storage.write(AUDIT_LOG_KEY, rows)
        return rows

    def _dead_runs(self) -> list[AuditEntry]:
        """Return the runs that have a file which no process holds; those whose row is final already as it is."""
        ended = self.read().filter(pl.col("status") != RunStatus.RUNNING.value)
        dead = []
        for key in self._storage.keys(FOLDER, f"*{_SUFFIX}"):
            told = abandoned_note(self._storage.root, key)
            if told is None:
                continue
            entry = _entry_of(key, told)
            if entry is None or entry.run_id in ended["run_id"]:
                self._storage.remove(key)
            else:
                dead.append(entry)
        return dead


def _entry_of(key: str, told: dict[str, Any]) -> AuditEntry | None:
    run_id = unquote(key.rpartition("/")[2].removesuffix(_SUFFIX))
    try:
        return AuditEntry(
            run_id=run_id,
            job=str(told["job"]),
            started_by=str(told["started_by"]),
            started_at=datetime.fromtimestamp(told["started_at"], UTC),
            config_hash=str(told["config_hash"]),
            code_version=str(told["code_version"]),
            settings=dict(told["settings"]),
            stages=[str(stage) for stage in told["stages"]],
            counts=dict(told.get("counts", {})),
            rows=dict(told.get("rows", {})),
            ended_at=datetime.fromtimestamp(told["ended_at"], UTC) if "ended_at" in told else None,
            status=RunStatus(told.get("status", RunStatus.DIED.value)),
            reason=told.get("reason", GONE),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _end_of(entry: AuditEntry) -> dict[str, Any]:
    return {
        "status": entry.status.value,
        "reason": None if entry.reason is None else without_accounts(entry.reason)[:_MAX_REASON],
        "ended_at": None if entry.ended_at is None else entry.ended_at.timestamp(),
        "counts": entry.counts,
        "rows": entry.rows,
    }


def _begin_of(entry: AuditEntry) -> dict[str, Any]:
    return {
        "job": entry.job,
        "started_by": entry.started_by,
        "started_at": entry.started_at.timestamp(),
        "config_hash": entry.config_hash,
        "code_version": entry.code_version,
        "settings": entry.settings,
        "stages": entry.stages,
    }


def _key(run_id: str) -> str:
    return f"{FOLDER}/{quote(run_id, safe='')}{_SUFFIX}"


def _json(value: Mapping[str, Any]) -> str | None:
    return json.dumps(value, sort_keys=True, default=str) if value else None


def now(clock: Callable[[], float] = time.time) -> datetime:
    """Return the time as the log has it."""
    return datetime.fromtimestamp(clock(), UTC)
