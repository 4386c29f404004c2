"""The steps from a source to the tables, and the table of what each of them lost.

Entries of the source become accounts, and accounts give records: two ways, each with steps of its own. What is lost has
one step and one reason, the first that holds of it, so that what leaves a step is what enters the next one.
"""

from __future__ import annotations

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.dids.handle_syntax import HandleRejection
from backfill_dagster.dids.syntax import DidRejection
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.records.date_quality import DateQuality
from backfill_dagster.records.outcomes import FilterReason, RejectReason
from backfill_dagster.repos.outcomes import FailureReason, LeftOut, Outcome
from backfill_dagster.repos.snapshots import StateWithoutAttempt
from backfill_dagster.tables.accounts import HiddenReason


class Unit(ClosedSet):
    """What is counted."""

    ACCOUNTS = "accounts", "Entries of the source, and from `distinct` on the accounts that they name."
    RECORDS = "records", "Records of the accounts that the source lists, as of the snapshot of each."


class Step(ClosedSet):
    """A step on the way to the tables, by what has passed it."""

    VALID = "valid", "Entries of the source that are DIDs, or that stand for one."
    DISTINCT = "distinct", "Accounts: entries that stand for the same one count once."
    WANTED = "wanted", "Accounts that the study does not exclude and has not purged."
    RESOLVED = "resolved", "Accounts whose DID led to a PDS."
    ASKED = "asked", "Accounts that the study asks something of: all, but where it asks for single records."
    REACHED = "reached", "Accounts of which their PDS has given an answer."
    COMPLETE = "complete", "Accounts of which all that is asked for has arrived, and held, at least once."
    ACTIVE = "active", "Accounts that are still there, or whose study shows what was collected all the same."
    IN_TABLES = "in_tables", "Accounts with a record in the tables."
    FOUND = "found", "Records that are there, of those in the trees, listed, or asked for by name."
    CHOSEN = "chosen", "Records that the study does not filter out."
    USABLE = "usable", "Records that a row could be made of."
    SHOWN = "shown", "Records that stand in the tables, undated ones included."
    DATED = "dated", "Records whose date can be believed, and that stand in a time window of the tables."


STEPS: dict[Unit, tuple[Step, ...]] = {
    Unit.ACCOUNTS: (
        *(Step.VALID, Step.DISTINCT, Step.WANTED, Step.RESOLVED, Step.ASKED, Step.REACHED, Step.COMPLETE),
        *(Step.ACTIVE, Step.IN_TABLES),
    ),
    Unit.RECORDS: (Step.FOUND, Step.CHOSEN, Step.USABLE, Step.SHOWN, Step.DATED),
}


class Breakdown(ClosedSet):
    """By what the losses are told apart."""

    ALL = "all", "By nothing: the sum over all."
    HOST = "host", "By the PDS where the account lives, by the latest word on it."
    ACTIVITY = (
        "activity",
        "By tenth of the accounts with a snapshot, from the quietest (1) to the most active (10), by records in it. "
        "How active the others are is not known.",
    )
    AGE = (
        "age",
        "By the account's age when its snapshot was fetched, by the oldest record that is in it: by the time in the "
        "record's key, between the beginning of the network and the fetch. Accounts without a snapshot, or without "
        "such a key, are of unknown age.",
    )


class LossReason(ClosedSet):
    """Reasons that no other part of the pipeline gives."""

    NO_RECORD_KEPT = "no_record_kept", "Nothing of what the account has is what the study keeps."
    SNAPSHOT_LOST = (
        "snapshot_lost",
        "The account was complete, and what was stored of it is gone.",
        "Run `<name>` again: it is fetched anew.",
    )
    UNDATED = "undated", "The record has no date that can be believed; why is not known of this build."


ATTRITION_KEY = "attrition.parquet"
NO_ACCOUNT, NO_HOST, UNKNOWN = "no account", "no host", "unknown"

ATTRITION_COLUMNS = (
    Column("unit", pl.String(), "What is counted.", required=True, words=(Unit,)),
    Column("by", pl.String(), "By what it is told apart.", required=True, words=(Breakdown,)),
    Column(
        "class",
        pl.String(),
        "Which host, tenth or age the row is of; `all` for the sum. Entries that name no account are a class of their "
        "own, `no account`, and so is what is not known, `unknown` or `no host`.",
        required=True,
    ),
    Column("place", pl.Int32(), "Place of the step on its way, counted from 1.", required=True),
    Column("step", pl.String(), "The step.", required=True, words=(Step,)),
    Column("entered", pl.Int64(), "How many came to the step.", required=True),
    Column("lost", pl.Int64(), "How many did not pass it.", required=True),
    Column("left", pl.Int64(), "How many passed it: entered less lost.", required=True),
    Column(
        "reasons",
        pl.List(pl.Struct({"reason": pl.String(), "number": pl.Int64()})),
        "Those lost, by reason, the most frequent first.",
        required=True,
        words=(
            *(
                DidRejection,
                HandleRejection,
                DirectoryState,
                StateWithoutAttempt,
                FailureReason,
                Outcome,
                LeftOut,
            ),
            *(FilterReason, RejectReason, HiddenReason, DateQuality, LossReason),
        ),
    ),
)
ATTRITION_SCHEMA = schema_of(ATTRITION_COLUMNS)
ATTRITION_KEY_COLUMNS = ("unit", "by", "class", "step")

# One row for so many of a class of which the same became: `step` is the one that lost them, or null if they came
# through. They stand there once for each breakdown.
LOSSES_SCHEMA = pl.Schema(
    {
        "unit": pl.String(),
        "by": pl.String(),
        "class": pl.String(),
        "step": pl.String(),
        "reason": pl.String(),
        "number": pl.Int64(),
    }
)


def attrition_table(losses: pl.DataFrame) -> pl.DataFrame:
    """Sum losses (LOSSES_SCHEMA) up by step, over all and by each breakdown (ATTRITION_SCHEMA), sorted."""
    steps = pl.DataFrame(
        [
            (unit.value, place, step.value)
            for unit, all_ in STEPS.items()
            for place, step in enumerate(all_, 1)
        ],
        schema={"unit": pl.String, "place": pl.Int32, "step": pl.String},
        orient="row",
    )
    parts = (_by_class(losses.filter(by=breakdown.value), steps, breakdown) for breakdown in Breakdown)
    order = pl.col("class").replace_strict(_PLACES, default=pl.col("class"))
    return pl.concat([ATTRITION_SCHEMA.to_frame(), *parts]).sort("unit", "by", order, "class", "place")


# Tenths and ages in their order, what is not known last.
_PLACES = {
    **{str(tenth): f"{tenth:02d}" for tenth in range(1, 11)},
    **dict.fromkeys((NO_HOST, UNKNOWN), "~1"),
    NO_ACCOUNT: "~2",
}


def _by_class(losses: pl.DataFrame, steps: pl.DataFrame, breakdown: Breakdown) -> pl.DataFrame:
    kind = ["unit", "class"]
    totals = losses.group_by(kind).agg(total=pl.col("number").sum())
    if breakdown is Breakdown.ALL:
        # Also of a study that has nothing yet.
        every = pl.DataFrame({"unit": [unit.value for unit in Unit], "class": "all"})
        totals = every.join(totals, on=kind, how="left").with_columns(pl.col("total").fill_null(0))
    lost = (
        losses.drop_nulls("step")
        .group_by(*kind, "step", "reason")
        .agg(pl.col("number").sum())
        .filter(pl.col("number") > 0)
        .sort(*kind, "step", "number", "reason", descending=[False, False, False, True, False])
        .group_by(*kind, "step", maintain_order=True)
        .agg(lost=pl.col("number").sum(), reasons=pl.struct("reason", "number"))
    )
    table = (
        totals.join(steps, on="unit")
        .join(lost, on=[*kind, "step"], how="left")
        .with_columns(pl.col("lost").fill_null(0), pl.col("reasons").fill_null([]))
        .sort(*kind, "place")
        .with_columns(left=pl.col("total") - pl.col("lost").cum_sum().over(kind))
        .with_columns(entered=pl.col("left") + pl.col("lost"), by=pl.lit(breakdown.value))
    )
    return table.select(ATTRITION_SCHEMA.names()).cast(ATTRITION_SCHEMA)


def totals(table: pl.DataFrame, unit: Unit) -> dict[Step, tuple[int, int, int, dict[str, int]]]:
    """Return the steps of one way over all: entered, lost, left, and those lost by reason."""
    rows = table.filter(unit=unit.value, by=Breakdown.ALL.value).sort("place")
    return {
        Step(step): (entered, lost, left, {each["reason"]: each["number"] for each in reasons})
        for step, entered, lost, left, reasons in rows.select(
            "step", "entered", "lost", "left", "reasons"
        ).iter_rows()
    }
