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


def class_of(ages: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the number of the class of each age in days."""
    return np.searchsorted(np.array(CLASS_EDGES[1:]), ages, side="right")


def days_by_class(ages: NDArray[np.float64], days: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Cut times that begin at these ages, and last so many days, by class: the days spent in each class."""
    ends = ages + days
    bounds = [*CLASS_EDGES, np.inf]
    return [
        np.clip(np.minimum(ends, end) - np.maximum(ages, first), 0.0, None) for first, end in pairwise(bounds)
    ]
