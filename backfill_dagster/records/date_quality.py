"""How far a record's `createdAt` is believed.

The judgement rests on the record, its key and the time of the fetch only, never on the clock, so that a rebuild
of the same snapshot judges alike.
"""

from datetime import UTC, datetime, timedelta

import polars as pl

from backfill_dagster.closed_sets import ClosedSet

# The first month of which the network has records.
NETWORK_START = datetime(2022, 11, 1, tzinfo=UTC)
# Clocks and time zones are wrong by hours, imported archives by years.
KEY_TOLERANCE = timedelta(hours=24)


class DateQuality(ClosedSet):
    """The closed set of judgements; the last four make a record undated."""

    CONSISTENT = "consistent", "`created_at` is within 24 hours of the time in the record's key."
    DIFFERS_FROM_RKEY = (
        "differs_from_rkey",
        "`created_at` is more than 24 hours from the time in the record's key, as of imported posts.",
        "Where it matters when a record appeared, compare `rkey_time`.",
    )
    NO_RKEY_TIME = "no_rkey_time", "The key is no TID, so that nothing speaks for the date or against it."
    MISSING = "missing", "`createdAt` is absent or null: the record is undated."
    UNPARSEABLE = "unparseable", "`createdAt` names no instant that can be held: the record is undated."
    BEFORE_NETWORK = "before_network", "It is earlier than 2022-11-01: the record is undated."
    FUTURE = "future", "It is later than the fetch that found the record, which is undated."


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
