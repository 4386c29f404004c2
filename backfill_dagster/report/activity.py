"""When the accounts were active within the study's period, by reading the tables' columns of time.

One file at a time, which is bounded by how tables are built. What is held of all accounts is their DIDs, two instants
and a bit for each week. So memory does not grow with records.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.report.days import DAYS_OF_WEEK, DaySpan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from numpy.typing import NDArray

    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StudyStorage

_INSTANT = pl.Datetime("us", "UTC")
_DAYS_SCHEMA = pl.Schema({"table": pl.String(), "day": pl.Date(), "records": pl.Int64()})
_FOUND_SCHEMA = pl.Schema({"account": pl.UInt32(), "week": pl.UInt16(), "first": _INSTANT, "last": _INSTANT})
_WEEKS_SCHEMA = pl.Schema({"week": pl.UInt16(), "accounts": pl.Int64()})
_SPANS_SCHEMA = pl.Schema({"first": _INSTANT, "last": _INSTANT, "weeks": pl.Int64()})
_BITS = 8


@dataclass(frozen=True, slots=True)
class Activity:
    """What the tables hold of the period.

    `by_day` (`table, day, records`) has a row for each day with records. `spans` (`first, last, weeks`) has one for
    each account with records: the instants of its first and last, and the number of weeks with any; it does not say
    which account it is. `by_week` (`week, accounts`) has one for each week with records.
    """

    by_day: pl.DataFrame
    spans: pl.DataFrame
    by_week: pl.DataFrame

    def records_of(self, table: str) -> int:
        """Return how many records of one table lie in the period."""
        return int(self.by_day.filter(pl.col("table") == table)["records"].sum())


def read_activity(
    storage: StudyStorage,
    tables: Sequence[str],
    granularity: Granularity,
    span: DaySpan | None,
    dids: pl.Series,
) -> Activity:
    """Read the records of the period of all tables; `dids` are the accounts whose rows stand there.

    `granularity` says which time windows the tables are cut into; they need not be the weeks that are counted.
    """
    if span is None:
        return Activity(_DAYS_SCHEMA.to_frame(), _SPANS_SCHEMA.to_frame(), _WEEKS_SCHEMA.to_frame())
    windows = list(_windows(granularity, span))
    numbered, by_day = dids.cast(pl.String).sort(), [_DAYS_SCHEMA.to_frame()]
    seen = _Seen.of_nobody(len(numbered), weeks=(windows[-1][1] - span.first).days // DAYS_OF_WEEK + 1)
    for folder, _ in windows:
        for table in tables:
            for key in storage.keys(f"tables/{table}/{folder}"):
                days, found = _read_file(storage, table, key, span, numbered)
                by_day.append(days)
                seen.add(found)
    counted = pl.concat(by_day).group_by("table", "day").agg(pl.col("records").sum())
    return Activity(counted.sort("table", "day"), seen.spans(), seen.by_week())


@dataclass(frozen=True, slots=True)
class _Seen:
    """When each account was seen: in microseconds since 1970 for the first and the last time, and in which weeks.

    A row of `weeks` is an account's, with a bit for each week.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    weeks: NDArray[np.uint8]

    @classmethod
    def of_nobody(cls, accounts: int, weeks: int) -> Self:
        never = np.iinfo(np.int64)
        return cls(
            np.full(accounts, never.max),
            np.full(accounts, never.min),
            np.zeros((accounts, -(-weeks // _BITS)), np.uint8),
        )

    def add(self, found: pl.DataFrame) -> None:
        """Add what was found of some accounts in some weeks (_FOUND_SCHEMA)."""
        # A file that was tampered with can have records of any time.
        found = found.filter(pl.col("week") < self.weeks.shape[1] * _BITS)
        account, week = found["account"].to_numpy(), found["week"].to_numpy()
        np.minimum.at(self.first, account, found["first"].to_physical().to_numpy())
        np.maximum.at(self.last, account, found["last"].to_physical().to_numpy())
        bit = np.left_shift(np.uint8(1), (week % _BITS).astype(np.uint8))
        np.bitwise_or.at(self.weeks, (account, week // _BITS), bit)

    def spans(self) -> pl.DataFrame:
        """Return the span of each account that was seen (_SPANS_SCHEMA), sorted."""
        weeks = np.bitwise_count(self.weeks).sum(axis=1, dtype=np.int64)
        told = pl.DataFrame({"first": self.first, "last": self.last, "weeks": weeks}).filter(
            pl.col("weeks") > 0
        )
        return told.cast(_SPANS_SCHEMA).sort(pl.all())

    def by_week(self) -> pl.DataFrame:
        """Return how many accounts were seen in each week in which any was (_WEEKS_SCHEMA), in order."""
        counted = [
            int(np.count_nonzero(self.weeks[:, week // _BITS] & (1 << week % _BITS)))
            for week in range(self.weeks.shape[1] * _BITS)
        ]
        return pl.DataFrame(
            [(week, accounts) for week, accounts in enumerate(counted) if accounts],
            schema=_WEEKS_SCHEMA,
            orient="row",
        )


def _windows(granularity: Granularity, span: DaySpan) -> Iterator[tuple[str, date]]:
    """Yield the folder of each window that has days of the span, and the first day after it."""
    start = granularity.floor(datetime.combine(span.first, time(), UTC))
    while start.date() <= span.last:
        following = granularity.after(start)
        yield granularity.folder(granularity.key(start)), following.date()
        start = following


def _read_file(
    storage: StudyStorage, table: str, key: str, span: DaySpan, numbered: pl.Series
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return one file of a table by day (_DAYS_SCHEMA) and by account and week (_FOUND_SCHEMA)."""
    instant = pl.col("created_at")
    week = (pl.col("day") - pl.lit(span.first)).dt.total_days() // DAYS_OF_WEEK
    rows = (
        storage.scan([key], TABLE_BY_NAME[table].schema)
        .filter("in_range")
        .select("did", instant, instant.dt.date().alias("day"))
    )
    days, found = storage.collect(
        [
            rows.group_by("day").agg(records=pl.len()),
            rows.group_by("did", week.alias("week")).agg(first=instant.min(), last=instant.max()),
        ],
        [key],
    )
    return _as(_DAYS_SCHEMA, days.with_columns(table=pl.lit(table))), _as(_FOUND_SCHEMA, _of(numbered, found))


def _of(numbered: pl.Series, found: pl.DataFrame) -> pl.DataFrame:
    """Add the `account` that each row is of, by its place among the sorted DIDs; leave out rows of others."""
    if numbered.is_empty():
        return found.clear().with_columns(account=pl.lit(0))
    # A hash table of all, made for every file, would take as much memory again.
    places = numbered.search_sorted(found["did"]).clip(0, len(numbered) - 1)
    is_own = numbered.gather(places) == found["did"]
    return found.with_columns(places.alias("account")).filter(is_own)


def _as(schema: pl.Schema, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(schema.names()).cast(schema)
