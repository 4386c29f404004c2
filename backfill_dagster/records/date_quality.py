"""How far a record's `createdAt` is believed.

The judgement rests on the record, its key and the time of the fetch only, never on the clock, so that a rebuild
of the same snapshot judges alike.
"""

from datetime import UTC, datetime, timedelta
from enum import StrEnum

import polars as pl

# The first month of which the network has records.
NETWORK_START = datetime(2022, 11, 1, tzinfo=UTC)
# Clocks and time zones are wrong by hours, imported archives by years.
KEY_TOLERANCE = timedelta(hours=24)


class DateQuality(StrEnum):
    """The closed set of judgements; the last four make a record undated."""

    CONSISTENT = "consistent"  # within KEY_TOLERANCE of the time in its key
    DIFFERS_FROM_RKEY = "differs_from_rkey"
    NO_RKEY_TIME = "no_rkey_time"  # its key is no TID, so that nothing speaks for or against it
    MISSING = "missing"  # absent or null
    UNPARSEABLE = "unparseable"  # names no instant that can be held
    BEFORE_NETWORK = "before_network"  # earlier than NETWORK_START
    FUTURE = "future"  # later than the fetch that found it


UNDATED_QUALITIES = frozenset(
    {DateQuality.MISSING, DateQuality.UNPARSEABLE, DateQuality.BEFORE_NETWORK, DateQuality.FUTURE}
)


def is_undated(date_quality: pl.Expr) -> pl.Expr:
    """Tell which rows stand in no time window: their date is missing, unreadable or impossible."""
    return date_quality.is_in(sorted(UNDATED_QUALITIES))


def date_quality(
    created_at: pl.Expr, is_written: pl.Expr, rkey_time: pl.Expr, fetched_at: pl.Expr
) -> pl.Expr:
    """Judge dates: instants (or null), whether anything was written at all, key times (or null), fetch times."""
    return (
        pl.when(created_at.is_null())
        .then(
            pl.when(is_written)
            .then(_literal(DateQuality.UNPARSEABLE))
            .otherwise(_literal(DateQuality.MISSING))
        )
        .when(created_at < NETWORK_START)
        .then(_literal(DateQuality.BEFORE_NETWORK))
        .when(created_at > fetched_at)
        .then(_literal(DateQuality.FUTURE))
        .when(rkey_time.is_null())
        .then(_literal(DateQuality.NO_RKEY_TIME))
        .when((created_at - rkey_time).abs() <= KEY_TOLERANCE)
        .then(_literal(DateQuality.CONSISTENT))
        .otherwise(_literal(DateQuality.DIFFERS_FROM_RKEY))
    )


def _literal(quality: DateQuality) -> pl.Expr:
    return pl.lit(quality.value)
