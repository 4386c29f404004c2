"""When the accounts were active within the study's period, by reading the tables' columns of time.

One file at a time, which is bounded by how tables are built. What is held of all accounts are a few numbers each, and
for the time window at hand which of them were active in which week. So memory does not grow with records.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.report.days import DAYS_OF_WEEK, DaySpan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StudyStorage

_INSTANT = pl.Datetime("us", "UTC")
_DAYS_SCHEMA = pl.Schema({"table": pl.String(), "day": pl.Date(), "records": pl.Int64()})
_SPANS_SCHEMA = pl.Schema({"account": pl.UInt32(), "first": _INSTANT, "last": _INSTANT})
_PAIRS_SCHEMA = pl.Schema({"account": pl.UInt32(), "week": pl.UInt16()})
_FOUND_SCHEMA = pl.Schema({**_PAIRS_SCHEMA, **_SPANS_SCHEMA})
_WEEKS_SCHEMA = pl.Schema({"week": pl.UInt16(), "accounts": pl.Int64()})
_WEEKS = 2**16
_ACTIVE_SCHEMA = pl.Schema({"account": pl.UInt32(), "weeks": pl.Int64()})


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
    by_day, spans = _DAYS_SCHEMA.to_frame(), _SPANS_SCHEMA.to_frame()
    by_week, active = _WEEKS_SCHEMA.to_frame(), _ACTIVE_SCHEMA.to_frame()
    # Of the weeks that go on in the window at hand or began in it.
    pairs = _PAIRS_SCHEMA.to_frame()
    numbered = pl.DataFrame({"did": dids.cast(pl.String)}).with_row_index("account")
    if span is None:
        return Activity(by_day, spans.drop("account").with_columns(weeks=pl.lit(0, pl.Int64)), by_week)
    for folder, following in _windows(granularity, span):
        for table in tables:
            days, found = _read_window(storage, table, folder, span, numbered)
            by_day = pl.concat([by_day, days])
            pairs = _unique([pairs, found])
            spans = _widest([spans, _widest([found])])
        # No later window has records of these weeks.
        is_over = pl.col("week") < (following - span.first).days // DAYS_OF_WEEK
        if following > span.last:
            is_over = pl.lit(value=True)
        over, pairs = pairs.filter(is_over), pairs.filter(~is_over)
        by_week = pl.concat([by_week, _as(_WEEKS_SCHEMA, over.group_by("week").agg(accounts=pl.len()))])
        weeks = _as(_ACTIVE_SCHEMA, over.group_by("account").agg(weeks=pl.len()))
        active = pl.concat([active, weeks]).group_by("account").agg(pl.col("weeks").sum())
    return Activity(
        by_day.sort("table", "day"),
        spans.join(active, on="account").drop("account").sort(pl.all()),
        by_week.sort("week"),
    )


def _windows(granularity: Granularity, span: DaySpan) -> Iterator[tuple[str, date]]:
    """Yield the folder of each window that has days of the span, and the first day after it."""
    start = granularity.floor(datetime.combine(span.first, time(), UTC))
    while start.date() <= span.last:
        following = granularity.after(start)
        yield granularity.folder(granularity.key(start)), following.date()
        start = following


def _read_window(
    storage: StudyStorage, table: str, folder: str, span: DaySpan, numbered: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return one window of one table by day (_DAYS_SCHEMA) and by account and week (_FOUND_SCHEMA)."""
    instant = pl.col("created_at")
    week = (pl.col("day") - pl.lit(span.first)).dt.total_days() // DAYS_OF_WEEK
    by_day, by_account = [_DAYS_SCHEMA.to_frame()], [_FOUND_SCHEMA.to_frame()]
    for key in storage.keys(f"tables/{table}/{folder}"):
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
        by_day.append(_as(_DAYS_SCHEMA, days.with_columns(table=pl.lit(table))))
        by_account.append(_as(_FOUND_SCHEMA, found.join(numbered, on="did")))
    return pl.concat(by_day).group_by("table", "day").agg(pl.col("records").sum()), pl.concat(by_account)


def _widest(spans: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return the span of each account (_SPANS_SCHEMA) over all that these frames have of it."""
    widest = pl.concat(frame.select(_SPANS_SCHEMA.names()) for frame in spans).group_by("account")
    return widest.agg(pl.col("first").min(), pl.col("last").max())


def _unique(pairs: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return each account and week (_PAIRS_SCHEMA) of these frames once."""
    # As one number, and sorted: a hash table of two columns takes a multiple of the memory.
    number = pl.col("account").cast(pl.UInt64) * _WEEKS + pl.col("week")
    numbers = np.unique(pl.concat(frame.select(number) for frame in pairs).to_series().to_numpy())
    account, week = np.divmod(numbers, np.uint64(_WEEKS))
    return _as(_PAIRS_SCHEMA, pl.DataFrame({"account": account, "week": week}))


def _as(schema: pl.Schema, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(schema.names()).cast(schema)
