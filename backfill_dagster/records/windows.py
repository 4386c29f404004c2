"""The time windows that a study's tables are partitioned by: months, ISO weeks or days of a record's true creation.

A window's key is at once the value in its folder's name and Dagster's partition key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.date_quality import is_undated

if TYPE_CHECKING:
    from backfill_dagster.config.time_range import TimeRange

# Stands for a window's key where rows are that belong to none.
UNDATED = "undated"


@dataclass(frozen=True, slots=True)
class Granularity:
    """One way to cut time: the word before `=` in a folder's name, the keys' format, and Polars' name of the step."""

    word: str
    key_format: str
    every: str

    def floor(self, instant: datetime) -> datetime:
        """Return the first instant of the window that holds this one."""
        start: datetime = pl.Series([instant]).dt.truncate(self.every)[0]
        return start

    def after(self, instant: datetime) -> datetime:
        """Return the first instant after the window that holds this one."""
        end: datetime = pl.Series([instant]).dt.truncate(self.every).dt.offset_by(self.every)[0]
        return end

    def key(self, start: datetime | None) -> str:
        """Return the key of a window by its first instant; of none, that of undated rows."""
        return UNDATED if start is None else start.strftime(self.key_format)

    def start(self, key: str) -> datetime | None:
        """Return a window's first instant: the inverse of `key`."""
        if key == UNDATED:
            return None
        return datetime.strptime(key, self.key_format).replace(tzinfo=UTC)

    def folder(self, key: str) -> str:
        """Return the name of a window's folder, in the form that DuckDB and Polars read as a column."""
        return f"{self.word}={key}"

    def start_of_row(self) -> pl.Expr:
        """Return the first instant of each row's window; null for a row whose date is not believed."""
        return pl.when(~is_undated(pl.col("date_quality"))).then(pl.col("created_at").dt.truncate(self.every))


GRANULARITIES = {
    "monthly": Granularity("month", "%Y-%m", "1mo"),
    "weekly": Granularity("week", "%Y-%m-%d", "1w"),
    "daily": Granularity("day", "%Y-%m-%d", "1d"),
}


def granularity_of(time_range: TimeRange) -> Granularity:
    """Return how a study cuts time."""
    return GRANULARITIES[time_range.partitions]


def study_windows(time_range: TimeRange, now: datetime | None = None) -> list[str]:
    """Return the key of every window that can hold rows, oldest first; an open period runs to the current one."""
    granularity = granularity_of(time_range)
    starts = pl.datetime_range(
        granularity.floor(time_range.earliest),
        time_range.latest or now or datetime.now(UTC),
        granularity.every,
        eager=True,
    )
    return starts.dt.strftime(granularity.key_format).to_list()
