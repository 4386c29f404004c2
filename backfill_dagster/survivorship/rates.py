"""How fast records and accounts go, and how much of a period had gone before it was collected.

A rate is a person-time incidence rate: deletions by the record-days that records were watched, in each class of their
age (piecewise constant hazard). Its interval is the exact one of a Poisson count (`poisson.py`), widened by how much
deletions come in bursts of single accounts: by the ratio of the variance of their number, estimated between accounts,
to the variance of as many independent ones (a design effect, never below 1).

Of the records of a period that are there, one of age `a` stands for 1 / S(a) that were made, S being the share that
the rates let survive to that age (inverse probability weighting). What the rates cannot know is assumed: that deletion
depends on age alone and was no other in the past, that the records of a collection are deleted alike, and, for ages of
which nothing is known, the rate of the next older one, or else of the next younger one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.survivorship.ages import CLASS_EDGES, CLASSES, DAY_MICROSECONDS
from backfill_dagster.survivorship.chains import is_another
from backfill_dagster.survivorship.poisson import poisson_bounds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date, datetime

    import numpy as np
    from numpy.typing import NDArray

    from backfill_dagster.survivorship.person_time import Watched

ALL_AGES = "all ages"
# Of records so nothing is left; more cannot be told as a number.
_MOST_GONE = 600.0
_DIGITS = 6
_UNSURE = 0.5


class Watching(ClosedSet):
    """What a rate of deletion is of."""

    RECORDS = "records", "Records that were deleted one by one, of accounts that are still there."
    ACCOUNTS = (
        "accounts",
        "Accounts that were complete and whose host or directory called them gone or inactive later.",
    )


RATE_COLUMNS = (
    Column("watched", pl.String(), "What was watched.", required=True, words=(Watching,)),
    Column("collection", pl.String(), "Collection of the records; null of accounts."),
    Column(
        "age",
        pl.String(),
        "Class of age, from the time in the record's key to when it was watched; `all ages` for the sum of all, those "
        "of no class as well: without a time in the key, or between looks too far apart to tell of any.",
        required=True,
    ),
    Column(
        "days",
        pl.Float64(),
        "Days for which they were watched, summed over all: record-days, or account-days.",
        required=True,
    ),
    Column("deleted", pl.Int64(), "How many of them went meanwhile.", required=True),
    Column("changed", pl.Int64(), "How many got another version under their key; only with `all ages`."),
    Column(
        "dispersion",
        pl.Float64(),
        "By what factor the variance of `deleted` is larger than of independent deletions; at least 1.",
        required=True,
    ),
    Column("rate", pl.Float64(), "Deletions per day watched.", required=True),
    Column("rate_low", pl.Float64(), "Lower bound of the rate's 95 % interval.", required=True),
    Column("rate_high", pl.Float64(), "Upper bound of the rate's 95 % interval.", required=True),
)
RATES_SCHEMA = schema_of(RATE_COLUMNS)


def deletion_rates(watched: Watched) -> pl.DataFrame:
    """Return the rates of records (RATES_SCHEMA) by collection and age, and over all ages; of those watched at all."""
    dispersions = {
        collection: dispersion(own["deleted"].to_numpy(), own["days"].to_numpy())
        for collection, own in watched.by_account.by_collection()
    }
    changed = dict(watched.changed.iter_rows())
    whole = watched.by_age.group_by("collection", maintain_order=True).agg(pl.col("days", "deleted").sum())
    rows = []
    for collection, summed, deleted in whole.iter_rows():
        # What is added up in another order differs in its last digits.
        days = round(summed, _DIGITS)
        if days <= 0:
            continue
        factor = dispersions[collection]
        rows.append(_row(collection, ALL_AGES, days, deleted, factor, int(changed.get(collection, 0))))
        own = watched.by_age.filter(collection=collection)
        by_age = {age: (round(summed, _DIGITS), deleted) for _, age, summed, deleted in own.iter_rows()}
        rows += [
            _row(collection, age, *by_age[age], factor, None)
            for age in CLASSES
            if age in by_age and by_age[age][0] > 0
        ]
    return pl.DataFrame(rows, schema=RATES_SCHEMA, orient="row")


class AccountTime(NamedTuple):
    """For how long accounts that were complete were watched, and how many of them went.

    One that goes counts up to the middle between the two looks. In half microseconds, so that the sum is exact, and
    the same in any order.
    """

    gone: int = 0
    half_microseconds: int = 0

    def and_also(self, other: AccountTime) -> AccountTime:
        """Return the sum of both."""
        return AccountTime(self.gone + other.gone, self.half_microseconds + other.half_microseconds)


def account_time(states: pl.DataFrame, inactive: Sequence[str]) -> AccountTime:
    """Return for how long these accounts were watched.

    `states` are the times at which they were seen in a state (`did, value, seen_at`, sorted); `inactive` are those that
    count as gone.
    """
    is_followed = ~is_another("did")
    steps = states.with_columns(
        before=pl.when(is_followed).then(pl.col("value").shift(1)), since=pl.col("seen_at").shift(1)
    ).filter(pl.col("before") == "complete")
    gone = pl.col("value").is_in(list(inactive))
    # Of all accounts of a large study more than 64 bits hold.
    span = (pl.col("seen_at") - pl.col("since")).dt.total_microseconds().cast(pl.Int128)
    return AccountTime(
        *steps.select(gone.sum(), half=pl.when(gone).then(span).otherwise(2 * span).sum()).row(0)
    )


def account_rates(time: AccountTime) -> pl.DataFrame:
    """Return the rate at which accounts that were complete go (RATES_SCHEMA, one row); none if none was watched."""
    days = round(time.half_microseconds / (2 * DAY_MICROSECONDS), _DIGITS)
    if days <= 0:
        return RATES_SCHEMA.to_frame()
    return pl.DataFrame(
        [_row(None, ALL_AGES, days, time.gone, 1.0, None, Watching.ACCOUNTS)],
        schema=RATES_SCHEMA,
        orient="row",
    )


def _row(
    collection: str | None,
    age: str,
    days: float,
    deleted: float,
    factor: float,
    changed: int | None,
    watching: Watching = Watching.RECORDS,
) -> tuple[object, ...]:
    low, high = poisson_bounds(deleted, factor)
    rates = (deleted / days, low / days, high / days)
    return (watching.value, collection, age, days, round(deleted), changed, factor, *rates)


def dispersion(deleted: NDArray[np.float64], days: NDArray[np.float64]) -> float:
    """Return by what factor the variance of all deletions is larger than if they were independent; at least 1.

    Between accounts (`deleted` and `days` of each), around what their time would have them lose.
    """
    total, accounts = float(deleted.sum()), len(deleted)
    if total <= 0 or accounts < 2 or days.sum() <= 0:
        return 1.0
    residuals = deleted - total / float(days.sum()) * days
    return max(1.0, round(float((residuals**2).sum()) / total * accounts / (accounts - 1), _DIGITS))


@dataclass(frozen=True, slots=True)
class Hazards:
    """The daily rate of each class of age, and the classes whose rate was taken from an older, or a younger, one."""

    rates: tuple[float, ...]
    from_older: tuple[str, ...]
    from_younger: tuple[str, ...]

    def made_for_each(self, age_in_days: float) -> float:
        """Return how many records were made for each that has lived to be so old: one by the share that has."""
        bounds = [*CLASS_EDGES, math.inf]
        lived = (max(0.0, min(age_in_days, end) - first) for first, end in pairwise(bounds))
        gone = sum(rate * days for rate, days in zip(self.rates, lived, strict=True))
        return math.exp(min(gone, _MOST_GONE))


def hazards(rates: pl.DataFrame, collection: str, column: str = "rate") -> Hazards | None:
    """Return the rates of a collection (`rate`, or a bound of it) by age; None if it was not watched.

    An age of which nothing is known has the rate of the next older one, or else of the next younger one.
    """
    own = rates.filter(pl.col("collection") == collection, pl.col("age") != ALL_AGES)
    known = dict(own.select("age", column).iter_rows())
    if not known:
        return None
    filled: list[float] = []
    from_older: list[str] = []
    from_younger: list[str] = []
    for number, name in enumerate(CLASSES):
        older = [other for other in CLASSES[number:] if other in known]
        younger = [other for other in CLASSES[:number] if other in known]
        filled.append(known[older[0] if older else younger[-1]])
        if name not in known:
            (from_older if older else from_younger).append(name)
    return Hazards(tuple(filled), tuple(from_older), tuple(from_younger))


@dataclass(frozen=True, slots=True)
class Lost:
    """Of a collection's records of a period: those present, and the share of all that were made which had gone.

    `low` and `high` are what the lower, and the upper, bounds of the rates of all ages come to together. `from_older`
    and `from_younger` are the ages that its records have lived through without a rate of their own.
    """

    collection: str
    present: int
    share: float
    low: float
    high: float
    from_older: tuple[str, ...]
    from_younger: tuple[str, ...]

    @property
    def is_told(self) -> bool:
        """Whether enough was watched to say anything: the bounds leave out half of what could be."""
        return self.high - self.low <= _UNSURE


def lost_before(
    rates: pl.DataFrame, by_day: pl.DataFrame, seen_at: datetime, collections: Mapping[str, str]
) -> list[Lost]:
    """Estimate how much of what was made in a period had gone before it was collected, by collection.

    `by_day` has `table, day, records` of the period; `seen_at` is when it was collected; `collections` names the
    collection of each table. What was not watched, or has no record in the period, is not in it.
    """
    told = by_day.with_columns(
        collection=pl.col("table").replace_strict(dict(collections), default=None, return_dtype=pl.String)
    )
    found = []
    for collection in sorted(set(collections.values())):
        days = told.filter(collection=collection).group_by("day").agg(pl.col("records").sum()).sort("day")
        present = int(days["records"].sum())
        central = hazards(rates, collection)
        if central is None or not present:
            continue
        shares = []
        for column in ("rate", "rate_low", "rate_high"):
            chosen = hazards(rates, collection, column) or central
            made = sum(
                records * chosen.made_for_each(_age(day, seen_at)) for day, records in days.iter_rows()
            )
            shares.append(1 - present / made)
        share, low, high = shares
        oldest = max(_age(day, seen_at) for day in days["day"])
        lived = {name for name, first in zip(CLASSES, CLASS_EDGES, strict=True) if first < oldest}
        older, younger = (
            tuple(name for name in names if name in lived)
            for names in (central.from_older, central.from_younger)
        )
        found.append(Lost(collection, present, share, low, high, older, younger))
    return found


def _age(day: date, seen_at: datetime) -> float:
    """Return the age in days of what was made in the middle of a day, at the time when it was seen."""
    since = (seen_at.date() - day).days + (seen_at.hour - 12) / 24
    return max(0.0, since)
