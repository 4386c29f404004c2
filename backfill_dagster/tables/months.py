"""Months, as the report groups days."""

from __future__ import annotations

from datetime import datetime, timedelta

MONTH_FORMAT = "%Y-%m"


def next_month(instant: datetime) -> datetime:
    """Return the first instant of the month after this one's."""
    first = instant.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)
