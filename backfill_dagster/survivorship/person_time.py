"""How long records were watched, and how many of them went meanwhile: what rates of deletion are made of.

A record is watched from the snapshot that first has it: at each snapshot all that are there are at risk, until the next
one, or until the account was last known to be at that revision. One that goes counts up to the middle of the time
between which it went. So a record that was never seen is nowhere, and one that is seen late is counted from then on
(delayed entry), at the age that it then has.

Of which age an interval between two looks tells is decided alike for those that end with a deletion and for those that
do not, by what does not depend on it (`ages.days_by_class`). What tells of no age counts in the sum of all only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from backfill_dagster.survivorship.ages import (
    CLASSES,
    DAY_MICROSECONDS,
    UNKNOWN,
    ages_in_days,
    bin_of,
    days_by_class,
    typical_ages,
)
from backfill_dagster.survivorship.watched_by_account import WatchedByAccount, added_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

# Of a collection and a class of ages: record-days watched, and records that went.
WATCHED_SCHEMA = pl.Schema(
    {"collection": pl.String(), "age": pl.String(), "days": pl.Float64(), "deleted": pl.Float64()}
)
_CHANGED_SCHEMA = pl.Schema({"collection": pl.String(), "changed": pl.Int64()})
_OF_AGE = ["collection", "age"]


@dataclass(frozen=True, slots=True)
class Watched:
    """Record-days and deletions by collection and age (WATCHED_SCHEMA), and by account.

    `changed` counts the versions that gave way to others, by collection (`collection, changed`): they are no deletions.
    """

    by_age: pl.DataFrame
    by_account: WatchedByAccount
    changed: pl.DataFrame


def watched(
    inventories: Iterable[pl.DataFrame], events: Iterable[pl.DataFrame], by_account: WatchedByAccount
) -> Watched:
    """Sum up what was watched, and add it to what is known of each account.

    `inventories` are those of snapshots (INVENTORY_SCHEMA) with the chain's `fetched_at, confirmed_at,
    confirmations, next_at`;
    `events` what went or came, as of `record_changes.read_events`.
    """
    by_age, changed = WATCHED_SCHEMA.to_frame(), [_CHANGED_SCHEMA.to_frame()]
    # One after the other: there are as many parts as packs.
    for part in chain(_of_inventories(inventories), _of_events(events)):
        by_age = added_up([by_age, added_up([part], _OF_AGE)], _OF_AGE).cast(WATCHED_SCHEMA)
        by_account.add(part)
        changed.append(part.group_by("collection").agg(pl.col("changed").sum()))
    total = pl.concat(changed).group_by("collection").agg(pl.col("changed").sum())
    return Watched(by_age.sort("collection", "age"), by_account, total.sort("collection"))


def _days(start: pl.Expr, end: pl.Expr) -> pl.Expr:
    return (end - start).dt.total_microseconds() / DAY_MICROSECONDS


def _ages_at_look(bins: pl.Series, since: pl.Series) -> NDArray[np.float64]:
    """Return how old records are so many days after the snapshot at which they were in these bins of ages."""
    middles: NDArray[np.float64] = np.array(typical_ages())
    ages: NDArray[np.float64] = middles[bins.to_numpy()] + since.to_numpy()
    return ages


def _of_inventories(inventories: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the time that all records of snapshots would have been watched, had none of them gone."""
    for inventory in inventories:
        # Looks that found nothing changed are taken to be evenly spaced; then there is one that found another snapshot.
        held = inventory.with_columns(
            since=pl.lit(0.0),
            span=_days(pl.col("fetched_at"), pl.col("confirmed_at")),
            looks=pl.max_horizontal("confirmations", 1).cast(pl.Float64),
        )
        last = inventory.with_columns(
            since=_days(pl.col("fetched_at"), pl.col("confirmed_at")),
            span=_days(pl.col("confirmed_at"), pl.col("next_at")),
            looks=pl.lit(1.0),
        )
        rows = pl.concat([held, last]).filter(pl.col("span") > 0)
        known, unknown = rows.drop_nulls("age"), rows.filter(pl.col("age").is_null())
        looks, numbers = known["looks"].to_numpy(), known["records"].to_numpy().astype(np.float64)
        spent = days_by_class(
            _ages_at_look(known["age"], known["since"]), known["span"].to_numpy() / looks, looks
        )
        parts = [
            known.select("did", "collection", age=pl.lit(name), days=pl.Series(days * numbers))
            for name, days in zip((*CLASSES, UNKNOWN), spent, strict=True)
        ]
        parts.append(
            unknown.select("did", "collection", age=pl.lit(UNKNOWN), days=pl.col("span") * pl.col("records"))
        )
        yield (
            pl.concat(parts)
            .filter(pl.col("days") > 0)
            .with_columns(deleted=pl.lit(0.0), changed=pl.lit(0, pl.Int64))
        )


def _of_events(events: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the deletions, and half of the interval in which they happened, less than nothing: it was not watched."""
    for rows in events:
        ended = rows.filter("stood_before")
        gone = ended.filter(~pl.col("changed"))
        gone = gone.with_columns(
            # In the same bin as in the snapshot's inventory, so that it takes its time from where that was added.
            age_then=bin_of(ages_in_days(gone["rkey"], gone["before_at"])),
            since=_days(pl.col("before_at"), pl.col("before_confirmed_at")),
            span=_days(pl.col("before_confirmed_at"), pl.col("fetched_at")),
        )
        known, unknown = gone.drop_nulls("age_then"), gone.filter(pl.col("age_then").is_null())
        spent = days_by_class(
            _ages_at_look(known["age_then"], known["since"]), known["span"].to_numpy(), np.ones(known.height)
        )
        parts = [
            known.select(
                *("did", "collection"),
                age=pl.lit(name),
                days=pl.Series(-days / 2),
                deleted=pl.Series((days > 0).astype(np.float64)),
            )
            for name, days in zip((*CLASSES, UNKNOWN), spent, strict=True)
        ]
        parts.append(
            unknown.select(
                *("did", "collection"), age=pl.lit(UNKNOWN), days=-pl.col("span") / 2, deleted=pl.lit(1.0)
            )
        )
        edits = ended.filter("changed").select(
            *("did", "collection"), age=pl.lit(UNKNOWN), days=pl.lit(0.0), deleted=pl.lit(0.0)
        )
        yield pl.concat(
            [
                *(part.with_columns(changed=pl.lit(0, pl.Int64)) for part in parts),
                edits.with_columns(changed=pl.lit(1, pl.Int64)),
            ]
        )
