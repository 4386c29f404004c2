"""How old a record was when it was seen, by the time in its key; and how long it was watched at which age.

A key that is a TID tells when the record was written, as its client says. Keys that tell nothing, or an impossible time
(before the network, or after the fetch), make the age unknown.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from backfill_dagster.records.date_quality import NETWORK_START
from backfill_dagster.records.record_keys import tid_times

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_MICROSECONDS = 86_400_000_000
# Ages at which records are counted, in days. Finer than the classes of rates: a record grows older while it is
# watched, and where in its bin it stands is not kept.
BIN_EDGES = (
    *(
        0.0,
        0.25,
        0.5,
        1.0,
        2.0,
        4.0,
        7.0,
        11.0,
        16.0,
        22.0,
        30.0,
        42.0,
        60.0,
        90.0,
        130.0,
        180.0,
        250.0,
        365.0,
    ),
    *(540.0, 730.0, 1095.0, 1460.0, 1825.0),
)
# Ages that rates are told of, in days: among the edges above.
CLASS_EDGES = (0.0, 1.0, 7.0, 30.0, 90.0, 365.0)
CLASSES = ("under 1 day", "1 to 7 days", "7 to 30 days", "30 to 90 days", "90 days to 1 year", "over 1 year")
UNKNOWN = "unknown"
# How long an interval between two looks may be, in widths of a class of ages, to tell something of that class. Daily,
# weekly and monthly looks, which are never quite on time, tell of the classes of 1, 6 and 23 days.
_LONGEST_LOOK = 1.35
_LAST_BIN_DAYS = 365.0


def ages_in_days(rkeys: pl.Series, seen_at: pl.Series) -> pl.Series:
    """Return how old each record was when it was seen, in days; null where its key does not tell."""
    frame = pl.DataFrame({"written": tid_times(rkeys), "seen": seen_at})
    possible = (pl.col("written") >= NETWORK_START) & (pl.col("written") <= pl.col("seen"))
    age = (pl.col("seen") - pl.col("written")).dt.total_microseconds() / DAY_MICROSECONDS
    return frame.select(pl.when(possible).then(age)).to_series()


def bin_of(ages: pl.Series) -> pl.Series:
    """Return the number of the bin of each age in days; null for null."""
    edges = np.array(BIN_EDGES[1:])
    numbers = np.searchsorted(edges, ages.fill_null(0.0).to_numpy(), side="right").astype(np.uint8)
    return pl.select(pl.when(ages.is_not_null()).then(pl.Series(numbers))).to_series()


def typical_ages() -> list[float]:
    """Return the age in days that stands for each bin: its middle."""
    return [(first + end) / 2 for first, end in pairwise(BIN_EDGES)] + [BIN_EDGES[-1] + _LAST_BIN_DAYS]


def days_by_class(
    ages: NDArray[np.float64], days: NDArray[np.float64], looks: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Give so many intervals of so many days each, the first of which begins at this age, to the classes of ages.

    Returns the days in each class, and last those that tell of none. When in an interval a record went is not known,
    so an interval counts whole, with what went in it, for the class of its middle; and for none if it is much longer
    than that class is wide: then it tells of other ages. Of the oldest class, which has no end, those tell that begin
    in it, and others as if it were as wide as all before.
    """
    shares, before, rest = [], np.zeros_like(ages), looks.astype(np.float64)
    for first, end in pairwise([*CLASS_EDGES, np.inf]):
        # The k-th interval, from 0, has its middle at age + (k + 1/2) days.
        reached = np.clip(np.ceil((end - ages) / days - 0.5), 0.0, looks)
        width = first if end == np.inf else end - first
        tells = (days <= _LONGEST_LOOK * width) | ((end == np.inf) & (ages >= first))
        own = np.where(tells, reached - before, 0.0)
        shares.append(own * days)
        before, rest = reached, rest - own
    return [*shares, rest * days]
