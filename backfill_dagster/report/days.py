"""The days that a report covers: those of the study's period that the collection could see."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date, datetime

    from backfill_dagster.config.time_range import TimeRange

DAYS_OF_WEEK = 7


@dataclass(frozen=True, slots=True)
class DaySpan:
    """Days in UTC, first and last included. Its weeks are counted from its first day; the last can be cut short."""

    first: date
    last: date

    @property
    def length(self) -> int:
        """How many days there are."""
        return (self.last - self.first).days + 1

    @property
    def weeks(self) -> int:
        """How many weeks there are, one that is cut short included."""
        return -(-self.length // DAYS_OF_WEEK)

    @property
    def last_week_days(self) -> int:
        """How many days the last week has."""
        return self.length - (self.weeks - 1) * DAYS_OF_WEEK

    def week_start(self, week: int) -> date:
        """Return the first day of a week, numbered from 0."""
        return self.first + timedelta(days=week * DAYS_OF_WEEK)


def observed_days(
    period: TimeRange, first_record: datetime | None, last_fetch: datetime | None
) -> DaySpan | None:
    """Return the days of the period up to the last fetch; None if there are none.

    An open start is the day of the first record. What is dated later than its own fetch is undated, so that days
    after the last fetch would be empty, and look as if nothing had happened on them.
    """
    start = period.start_date or first_record
    if start is None or last_fetch is None:
        return None
    end = last_fetch if period.end_date is None else min(period.end_date, last_fetch)
    return DaySpan(start.date(), end.date()) if start.date() <= end.date() else None
