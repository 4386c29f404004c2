"""The study-period rule: where a dated record stands to the period, and the time by which it is filed.

A record inside the period, both ends included, is filed by its creation time. One outside is filed by a normalised
date: created on day 1 to 15, the 15th of that month; later, the 1st of the next month; at 00:00:00 UTC either way.
A normalised date can itself fall inside the period, so `in_range` is what tells the two apart.
"""

import polars as pl

from backfill_dagster.records.settings import StudyPeriod


def is_in_period(created_at: pl.Expr, period: StudyPeriod) -> pl.Expr:
    """Tell which instants lie inside the period, both ends included; null, which has no date, does not."""
    inside = created_at.is_not_null()
    if period.start is not None:
        inside &= created_at >= period.start
    if period.end is not None:
        inside &= created_at <= period.end
    return inside


def normalised_date(created_at: pl.Expr) -> pl.Expr:
    """Move instants to the 15th of their month (day 1 to 15) or the 1st of the next one, 00:00:00 UTC."""
    month = created_at.dt.truncate("1mo")
    return (
        pl.when(created_at.dt.day() <= 15)
        .then(month + pl.duration(days=14))
        .otherwise(month.dt.offset_by("1mo"))
    )


def sync_timestamp(created_at: pl.Expr, in_period: pl.Expr) -> pl.Expr:
    """Give the time by which each record is filed: its own inside the period, the normalised date outside."""
    return pl.when(in_period).then(created_at).otherwise(normalised_date(created_at))
