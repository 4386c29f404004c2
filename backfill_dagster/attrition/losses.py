"""What became of each entry, account and record: the losses that the table of attrition sums up."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from backfill_dagster.attrition.steps import (
    LOSSES_SCHEMA,
    NO_ACCOUNT,
    NO_HOST,
    UNKNOWN,
    Breakdown,
    LossReason,
    Step,
    Unit,
)
from backfill_dagster.dids.syntax import DidRejection
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.repos.outcomes import FailureReason, LeftOut, Outcome
from backfill_dagster.repos.snapshots import NOTHING_ASKED, PENDING, TOMBSTONED, UNRESOLVED
from backfill_dagster.storage import without_source
from backfill_dagster.tables.accounts import HiddenReason

if TYPE_CHECKING:
    from collections.abc import Iterable

TENTHS = 10
# Failures that blame the way to the host, so that nothing is known of the account there.
OF_THE_WAY = frozenset(
    {
        FailureReason.UNREACHABLE,
        FailureReason.TIMED_OUT,
        FailureReason.RATE_LIMITED,
        FailureReason.SERVER_ERROR,
        FailureReason.REFUSED_ADDRESS,
        FailureReason.BAD_REDIRECT,
        FailureReason.UNEXPECTED_ANSWER,
        FailureReason.DIRECTORY_FAILED,
    }
)
_NOT_WANTED = frozenset({DidRejection.EXCLUDED, DidRejection.PURGED})
_AGE_LABELS = (
    (30.0, "under 30 days"),
    (90.0, "30 to 90 days"),
    (180.0, "90 to 180 days"),
    (365.0, "180 days to 1 year"),
    (730.0, "1 to 2 years"),
)
_OLDEST = "over 2 years"
AGES = (*(label for _, label in _AGE_LABELS), _OLDEST)
_CLASSES = ("host", "activity", "age")


def age_label(days: pl.Expr) -> pl.Expr:
    """Name the class of an age in days; null is `unknown`."""
    told: pl.Expr = pl.lit(_OLDEST)
    for end, label in reversed(_AGE_LABELS):
        told = pl.when(days < end).then(pl.lit(label)).otherwise(told)
    return pl.when(days.is_null()).then(pl.lit(UNKNOWN)).otherwise(told)


class KnownLot(NamedTuple):
    """Some of the accounts in the source (`accounts_schema`), by DID, and what else is known of them.

    `undated` are the undated rows of the tables by account and judgement (`did, date_quality, records`); `ages` the age
    in days of each account (`did, days`) as far as it is known.
    """

    accounts: pl.DataFrame
    undated: pl.DataFrame
    ages: pl.DataFrame


# Columns of the accounts that their losses are told by.
LOSS_COLUMNS = (
    *("did", "pds_host", "state", "reason", "shown", "obtained", "filtered", "rejected", "undated"),
    *("records_fetched", "records_absent", "records_kept"),
)


def is_seen() -> pl.Expr:
    """Tell which accounts have a snapshot."""
    return pl.col("obtained").is_not_null()


def tenths(accounts: pl.DataFrame) -> pl.Series:
    """Return the tenth (1 to 10) that each account with a snapshot is of, by number of records; null for the others.

    `accounts` are all of the source (`records_fetched, seen`) by DID: of the same number the earlier comes first.
    """
    place = pl.when("seen").then("records_fetched").rank("ordinal") - 1
    tenth = 1 + place.cast(pl.Int64) * TENTHS // pl.col("seen").sum().clip(1).cast(pl.Int64)
    return accounts.select(tenth=tenth.cast(pl.UInt8))["tenth"]


def losses(rejects: pl.DataFrame, activity: pl.Series, lots: Iterable[KnownLot]) -> pl.DataFrame:
    """Return what became of everything (LOSSES_SCHEMA).

    `rejects` are those of the source (`reason`); `activity` the `tenths` of all accounts, in the order of the lots.
    """
    total, first = _summed([LOSSES_SCHEMA.to_frame(), _by_each(_of_entries(rejects))]), 0
    for lot in lots:
        known = _with_classes(lot, activity.slice(first, lot.accounts.height))
        first += lot.accounts.height
        parts = [_of_accounts(known), *_of_records(known, lot.undated)]
        total = without_source(_summed([total, *(_by_each(part) for part in parts)]))
    return total


def _by_each(part: pl.DataFrame) -> pl.DataFrame:
    """Sum losses up by each breakdown (LOSSES_SCHEMA)."""
    parts = []
    for breakdown in Breakdown:
        of_class = pl.lit("all") if breakdown is Breakdown.ALL else pl.col(breakdown.value)
        told = part.with_columns(of_class.alias("class"), by=pl.lit(breakdown.value))
        parts.append(told.select(LOSSES_SCHEMA.names()).cast(LOSSES_SCHEMA))
    return _summed(parts)


def _summed(losses: Iterable[pl.DataFrame]) -> pl.DataFrame:
    by = [name for name in LOSSES_SCHEMA if name != "number"]
    return pl.concat(losses).group_by(by).agg(pl.col("number").sum())


def _with_classes(lot: KnownLot, activity: pl.Series) -> pl.DataFrame:
    """Add to each account the class that it is of in each breakdown, by whether it has a snapshot."""
    return (
        lot.accounts.with_columns(tenth=activity)
        .join(lot.ages, on="did", how="left", maintain_order="left")
        .with_columns(
            host=pl.col("pds_host").fill_null(NO_HOST),
            activity=pl.col("tenth").cast(pl.String).fill_null(UNKNOWN),
            age=age_label(pl.when(is_seen()).then("days")),
            seen=is_seen(),
        )
    )


def _of_entries(rejects: pl.DataFrame) -> pl.DataFrame:
    reason = pl.col("reason")
    step = (
        pl.when(reason == DidRejection.DUPLICATE.value)
        .then(pl.lit(Step.DISTINCT.value))
        .when(reason.is_in([word.value for word in _NOT_WANTED]))
        .then(pl.lit(Step.WANTED.value))
        .otherwise(pl.lit(Step.VALID.value))
    )
    return (
        rejects.group_by("reason")
        .agg(number=pl.len())
        .with_columns(
            *(pl.lit(NO_ACCOUNT).alias(name) for name in _CLASSES),
            unit=pl.lit(Unit.ACCOUNTS.value),
            step=step,
        )
    )


def _of_accounts(accounts: pl.DataFrame) -> pl.DataFrame:
    """Say of each account which step it did not pass. One with a snapshot has come as far as that, once."""
    state, seen = pl.col("state"), pl.col("seen")
    reason = pl.coalesce("reason", "state")
    failed = state == Outcome.FAILED.value
    of_the_way = pl.col("reason").is_in([word.value for word in OF_THE_WAY]).fill_null(value=False)
    unasked = (state == PENDING) & (pl.col("reason") == DirectoryState.NOT_ASKED.value).fill_null(value=False)
    ends = (
        (seen & ~pl.col("shown"), Step.ACTIVE, state),
        (seen & (pl.col("records_kept") == 0), Step.IN_TABLES, pl.lit(LossReason.NO_RECORD_KEPT.value)),
        (seen, None, pl.lit(None, pl.String)),
        (state.is_in([UNRESOLVED, TOMBSTONED]) | unasked, Step.RESOLVED, reason),
        (state == NOTHING_ASKED, Step.ASKED, state),
        ((state == PENDING) | (failed & of_the_way), Step.REACHED, reason),
        (state == Outcome.COMPLETE.value, Step.COMPLETE, pl.lit(LossReason.SNAPSHOT_LOST.value)),
        (pl.lit(value=True), Step.COMPLETE, reason),
    )
    told = accounts.with_columns(
        step=pl.coalesce(*_first(ends, [pl.lit(step.value if step else None) for _, step, _ in ends])),
        why=pl.coalesce(*_first(ends, [why for _, _, why in ends])),
    ).drop("reason")
    return (
        told.group_by(*_CLASSES, "step", reason="why")
        .agg(number=pl.len())
        .with_columns(unit=pl.lit(Unit.ACCOUNTS.value))
    )


def _first(ends: Iterable[tuple[pl.Expr, Step | None, pl.Expr]], values: list[pl.Expr]) -> list[pl.Expr]:
    """Return the value of the first end that holds, as one expression in a list."""
    chosen: pl.Expr = pl.lit(None, pl.String)
    for (holds, _, _), value in reversed(list(zip(ends, values, strict=True))):
        chosen = pl.when(holds).then(value).otherwise(chosen)
    return [chosen]


def _of_records(accounts: pl.DataFrame, undated: pl.DataFrame) -> Iterable[pl.DataFrame]:
    """Say of the records of each account which step they did not pass."""
    hidden = [reason.value for reason in HiddenReason]
    filtered = _by_reason(accounts, "filtered")
    is_hidden = pl.col("reason").is_in(hidden)
    why = (
        undated.join(accounts.select("did", *_CLASSES), on="did")
        .group_by(*_CLASSES, reason="date_quality")
        .agg(number=pl.col("records").sum())
    )
    counted = undated.group_by("did").agg(known=pl.col("records").sum().cast(pl.Int64))
    rest = accounts.join(counted, on="did", how="left").with_columns(
        number=pl.col("undated") - pl.col("known").fill_null(0)
    )
    ends = [
        (_sum(accounts, "records_absent").with_columns(reason=pl.lit(LeftOut.ABSENT.value)), Step.FOUND),
        (filtered.filter(~is_hidden), Step.CHOSEN),
        (_by_reason(accounts, "rejected"), Step.USABLE),
        (filtered.filter(is_hidden), Step.SHOWN),
        (why, Step.DATED),
        (_sum(rest, "number").with_columns(reason=pl.lit(LossReason.UNDATED.value)), Step.DATED),
        (
            _sum(
                accounts.with_columns(dated=pl.col("records_kept") - pl.col("undated")), "dated"
            ).with_columns(reason=pl.lit(None, pl.String)),
            None,
        ),
    ]
    for part, step in ends:
        yield part.filter(pl.col("number") != 0).with_columns(
            unit=pl.lit(Unit.RECORDS.value), step=pl.lit(step.value if step else None, pl.String)
        )


def _by_reason(accounts: pl.DataFrame, fate: str) -> pl.DataFrame:
    return (
        accounts.select(*_CLASSES, pl.col(fate))
        .explode(fate)
        .drop_nulls(fate)
        .select(*_CLASSES, pl.col(fate).struct.unnest())
        .group_by(*_CLASSES, "reason")
        .agg(number=pl.col("records").sum())
    )


def _sum(accounts: pl.DataFrame, column: str) -> pl.DataFrame:
    return accounts.group_by(_CLASSES).agg(number=pl.col(column).sum())
