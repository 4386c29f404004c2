"""What the table of accounts comes to: sums over accounts that have the same said of them, none of which is named.

Checks, metrics, summaries and the report are made of these, so that nobody needs the table whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.records.tables import INSTANT, TABLES
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.storage import without_source

if TYPE_CHECKING:
    from collections.abc import Iterable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# By what accounts are told apart; `has_rev` is whether the snapshot has a revision.
_KIND = ("in_source", "shown", "state", "reason", "pds_host", "obtained", "has_rev", "signed_by")
_RECORDS = ("fetched", "absent", "kept", "filtered", "rejected")
_NUMBERS = (*(f"records_{fate}" for fate in _RECORDS), *TABLES, "undated", "with_issues")
_FATES = ("filtered", "rejected")
KINDS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("in_source", "shown"), pl.Boolean()),
        **dict.fromkeys(("state", "reason", "pds_host", "obtained"), pl.String()),
        "has_rev": pl.Boolean(),
        "signed_by": pl.String(),
        "accounts": pl.Int64(),
        "in_tables": pl.Int64(),
        **dict.fromkeys(_NUMBERS, pl.Int64()),
        # Of the accounts in the tables whose snapshot has a time: their records there, and for each of these the
        # seconds from 1970 to the fetch.
        "timed_records": pl.Int64(),
        "timed_seconds": pl.Int64(),
        "first_created_at": INSTANT,
        "first_fetch": INSTANT,
        "last_fetch": INSTANT,
    }
)
_REASONS_SCHEMA = pl.Schema(
    {"in_source": pl.Boolean(), "fate": pl.String(), "reason": pl.String(), "records": pl.Int64()}
)
SEEN_SCHEMA = pl.Schema(
    {"records_fetched": pl.Int64(), "records_rejected": pl.Int64(), "failed": pl.Boolean()}
)
_FIRST, _LAST = ("first_created_at", "first_fetch"), ("last_fetch",)
# Columns of the table of accounts that all of it is made of, beside those of its tables.
ACCOUNT_COLUMNS = (
    *("did", "in_source", "shown", "state", "reason", "pds_host", "obtained", "repo_rev", "signed_by"),
    *(f"records_{fate}" for fate in _RECORDS),
    *("undated", "with_issues", "filtered", "rejected", "first_created_at", "snapshot_fetched_at"),
)
# Rows of sums that are held, at least, before they are added up.
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class AccountSums:
    """Sums over accounts.

    `kinds` (KINDS_SCHEMA) has a row for all accounts that have the same said of them, `reasons` (`in_source, fate,
    reason, records`) one for each reason for which records were filtered or rejected. `seen` (SEEN_SCHEMA) has one for
    each account of the source whose snapshot has a revision, in the order of their DIDs, which it does not tell.
    """

    kinds: pl.DataFrame
    reasons: pl.DataFrame
    seen: pl.DataFrame

    @property
    def of_source(self) -> AccountSums:
        """The same of those accounts alone that the source lists."""
        return replace(self, kinds=self.kinds.filter("in_source"), reasons=self.reasons.filter("in_source"))

    @property
    def accounts(self) -> int:
        """How many accounts there are."""
        return self.total("accounts")

    def total(self, column: str) -> int:
        """Return the sum of one column of `kinds`."""
        return sum(self.kinds[column].to_list())

    @property
    def first_created_at(self) -> datetime | None:
        """The earliest believed creation time of a record in the tables."""
        return _instant(self.kinds["first_created_at"].min())

    @property
    def first_fetch(self) -> datetime | None:
        """When the earliest snapshot was fetched."""
        return _instant(self.kinds["first_fetch"].min())

    @property
    def last_fetch(self) -> datetime | None:
        """When the latest snapshot was fetched."""
        return _instant(self.kinds["last_fetch"].max())

    @property
    def mean_fetch(self) -> datetime | None:
        """When the records in the tables were fetched, on average over them, to the second."""
        records = self.total("timed_records")
        return _EPOCH + timedelta(seconds=round(self.total("timed_seconds") / records)) if records else None

    def by(self, *columns: str) -> pl.DataFrame:
        """Return how many `accounts` have the same in these columns of `kinds`, in no order."""
        return self.kinds.group_by(columns).agg(pl.col("accounts").sum())

    def reason_totals(self, fate: str) -> pl.DataFrame:
        """Return the records of one fate (`filtered` or `rejected`) by reason, the most frequent first."""
        return (
            self.reasons.filter(fate=fate)
            .group_by("reason")
            .agg(pl.col("records").sum())
            .sort("records", "reason", descending=[True, False])
        )

    @property
    def missigned(self) -> int:
        """How many accounts have a snapshot that is said to be signed by a key that is none of theirs."""
        return self._number_of(pl.col("has_rev") & ~pl.col("signed_by").is_in(["current", "previous"]))

    @property
    def unsigned(self) -> int:
        """How many accounts of the source have a snapshot with a signature that was not checked."""
        is_signed = pl.col("has_rev") & (pl.col("obtained") != Obtained.LIST_RECORDS.value)
        return self._number_of(pl.col("in_source") & is_signed & pl.col("signed_by").is_null())

    def _number_of(self, chosen: pl.Expr) -> int:
        return int(self.kinds.filter(chosen)["accounts"].sum())


def sum_up(lots: Iterable[pl.DataFrame]) -> AccountSums:
    """Sum up the table of accounts, given in lots that follow each other in the order of DIDs.

    They need ACCOUNT_COLUMNS, and a column for each table that counts.
    """
    running = RunningSums()
    for lot in lots:
        running.add(lot)
    return running.sums()


class RunningSums:
    """Sums over lots of accounts that come one after the other."""

    def __init__(self) -> None:
        self._kinds = _Added(KINDS_SCHEMA, _KIND)
        self._reasons = _Added(_REASONS_SCHEMA, ("in_source", "fate", "reason"))
        self._seen = [SEEN_SCHEMA.to_frame()]

    def add(self, accounts: pl.DataFrame) -> None:
        """Add a lot; see `sum_up`."""
        self._kinds.add(_kinds_of(accounts))
        for fate in _FATES:
            self._reasons.add(_reasons_of(accounts, fate))
        seen = accounts.filter(pl.col("in_source") & pl.col("repo_rev").is_not_null())
        failed = pl.col("state") == Outcome.FAILED.value
        self._seen.append(
            seen.select("records_fetched", "records_rejected", failed=failed.fill_null(value=False))
        )

    def sums(self) -> AccountSums:
        """Return what all lots so far come to."""
        return AccountSums(self._kinds.total(), self._reasons.total(), pl.concat(self._seen))


class _Added:
    """Rows that are added up by some of their columns."""

    def __init__(self, schema: pl.Schema, by: tuple[str, ...]) -> None:
        self._by = by
        self._total = schema.to_frame()
        self._more: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, rows: pl.DataFrame) -> None:
        self._more.append(without_source(rows))
        self._rows += rows.height
        # As many as are added up already, so that none is added up again and again.
        if self._rows > max(_ROWS_AT_ONCE, self._total.height):
            self.total()

    def total(self) -> pl.DataFrame:
        schema = self._total.schema
        rest = [name for name in schema if name not in self._by]
        added = [_combined(name) for name in rest]
        whole = pl.concat([self._total, *self._more]).group_by(self._by).agg(added)
        self._total, self._more, self._rows = whole.select(schema.names()).sort(self._by), [], 0
        return self._total


def _instant(value: object) -> datetime | None:
    # What Polars' aggregations return is typed as any value.
    return value  # type: ignore[return-value]


def _combined(column: str) -> pl.Expr:
    if column in _FIRST:
        return pl.col(column).min()
    return pl.col(column).max() if column in _LAST else pl.col(column).sum()


def _kinds_of(accounts: pl.DataFrame) -> pl.DataFrame:
    kept, fetched = pl.col("records_kept"), pl.col("snapshot_fetched_at")
    is_timed = (kept > 0) & fetched.is_not_null()
    seconds = (fetched - pl.lit(_EPOCH, INSTANT)).dt.total_seconds()
    told: dict[str, Any] = {
        "accounts": pl.len(),
        "in_tables": (kept > 0).sum(),
        **{name: pl.col(name).sum() for name in _NUMBERS if name in accounts.columns},
        "timed_records": kept.filter(is_timed).sum(),
        "timed_seconds": (seconds * kept).filter(is_timed).sum(),
        "first_created_at": pl.col("first_created_at").min(),
        "first_fetch": fetched.min(),
        "last_fetch": fetched.max(),
    }
    missing = [pl.lit(0).alias(name) for name in _NUMBERS if name not in accounts.columns]
    return (
        accounts.with_columns(has_rev=pl.col("repo_rev").is_not_null())
        .group_by(_KIND)
        .agg(**told)
        .with_columns(missing)
        .select(KINDS_SCHEMA.names())
        .cast(KINDS_SCHEMA)
    )


def _reasons_of(accounts: pl.DataFrame, fate: str) -> pl.DataFrame:
    return (
        accounts.select("in_source", told=pl.col(fate))
        .explode("told")
        .select("in_source", pl.col("told").struct.unnest())
        .drop_nulls("reason")
        .group_by("in_source", "reason")
        .agg(pl.col("records").sum())
        .select("in_source", pl.lit(fate).alias("fate"), "reason", "records")
        .cast(_REASONS_SCHEMA)
    )
