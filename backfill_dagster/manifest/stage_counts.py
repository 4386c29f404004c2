"""What went into each stage of a study and what came out of it, from what is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.repos.ledger_lots import ledger_by_range
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.snapshots import latest_attempts
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    SOURCE_REJECTS_KEY,
    lot_ranges,
)
from backfill_dagster.tables.accounts import reason_totals

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.manifest.accounts import SnapshotTotals

_NONE = "none"
_ACCOUNTS_AT_ONCE = 100_000
_FATES = ("filtered", "rejected")


@dataclass(slots=True)
class AttemptTotals:
    """How the latest attempts on accounts ended, and why those failed that did: how many of each."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, ledger: pl.DataFrame) -> None:
        """Count the attempts on some accounts (LEDGER_SCHEMA): all of those on each."""
        latest = latest_attempts(ledger)
        self.outcomes.update(_counts(latest, "outcome"))
        self.failures.update(_counts(latest.filter(pl.col("outcome") == Outcome.FAILED.value), "reason"))


def count_attempts(storage: StudyStorage) -> AttemptTotals:
    """Count the latest attempts on all accounts. Raises StorageError."""
    totals, ranges = AttemptTotals(), lot_ranges(storage)
    with ledger_by_range(storage, ranges) as ledger:
        for dids in ranges:
            totals.add(ledger(dids))
    return totals


def stage_counts(
    study: Study, files: pl.DataFrame, attempts: AttemptTotals, snapshots: SnapshotTotals
) -> dict[str, Any]:
    """Return the counts by stage; `files` is the list of them (FILES_SCHEMA). Raises StorageError.

    Of what there is of each account, at most a column of all of them is held at a time.
    """
    storage = StudyStorage(study.location)
    told: dict[str, Any] = {}
    if storage.exists(SOURCE_KEY) and storage.exists(SOURCE_REJECTS_KEY):
        kept, left_out = storage.rows(SOURCE_KEY), _by(storage, SOURCE_REJECTS_KEY, "reason")
        told["source_dids"] = {"in": kept + sum(left_out.values()), "out": kept, "left_out": left_out}
    states = _by(storage, DIRECTORY_KEY, "state")
    told["directory"] = {"in": sum(states.values()), "out": states}
    told["repos"] = {
        "in": states.get("resolved", 0),
        "latest_attempts": dict(sorted(attempts.outcomes.items())),
        "failures": dict(sorted(attempts.failures.items())),
        "snapshots": snapshots.snapshots,
        "records": snapshots.records,
        "purged": snapshots.purged,
        "masked": snapshots.masked,
    }
    if storage.exists(ACCOUNTS_KEY):
        told |= _accounts(storage)
    told["tables"] = {folder: _rows_below(files, folder) for folder in ("tables", "undated", "derived")}
    return told


def _accounts(storage: StudyStorage) -> dict[str, Any]:
    """Sum up the table of accounts, some of them at a time: the reasons are more than they."""
    rows, sums = storage.rows(ACCOUNTS_KEY), Counter[str]()
    states: Counter[str] = Counter()
    fates: dict[str, Counter[str]] = {fate: Counter() for fate in _FATES}
    for first in range(0, rows, _ACCOUNTS_AT_ONCE):
        lot = storage.scan_as_it_is(ACCOUNTS_KEY).slice(first, _ACCOUNTS_AT_ONCE)
        columns = ["state", "records_fetched", "records_kept", *_FATES]
        [some] = storage.collect([lot.select(columns)], [ACCOUNTS_KEY])
        states.update(_counts(some, "state"))
        sums.update({name: int(some[name].sum()) for name in ("records_fetched", "records_kept")})
        for fate, reasons in fates.items():
            reasons.update(dict(reason_totals(some, fate).iter_rows()))
    by_reason = {
        fate: dict(sorted(reasons.items(), key=lambda told: (-told[1], told[0])))
        for fate, reasons in fates.items()
    }
    return {
        "records": {"in": sums["records_fetched"], "kept": sums["records_kept"], **by_reason},
        "accounts": {"in": rows, "out": dict(sorted(states.items()))},
    }


def _by(storage: StudyStorage, key: str, column: str) -> dict[str, int]:
    """Count the rows of a stored table by a column."""
    [rows] = storage.collect([storage.scan_as_it_is(key).select(column)], [key])
    return dict(sorted(_counts(rows, column).items()))


def _counts(rows: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(rows.group_by(pl.col(column).fill_null(_NONE)).len().iter_rows())


def _rows_below(files: pl.DataFrame, folder: str) -> dict[str, int]:
    below = files.filter(pl.col("key").str.starts_with(f"{folder}/"))
    table = pl.col("key").str.split("/").list.get(1)
    return dict(below.group_by(table).agg(pl.col("rows").sum()).sort("key").iter_rows())
