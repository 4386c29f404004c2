"""The months that a study's tables are partitioned by: `YYYY-MM`, of a record's true creation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backfill_dagster.config import TimeRange

MONTH_FORMAT = "%Y-%m"


def study_months(time_range: TimeRange, now: datetime | None = None) -> list[str]:
    """Return every month that has a partition, oldest first; an open period runs to the current month."""
    month = time_range.first_month
    end = time_range.month_after_last or next_month(now or datetime.now(UTC))
    months = []
    while month < end:
        months.append(month.strftime(MONTH_FORMAT))
        month = next_month(month)
    return months


def next_month(instant: datetime) -> datetime:
    """Return the first instant of the month after this one's."""
    first = instant.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)
