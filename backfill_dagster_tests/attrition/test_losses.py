"""The table of attrition: whatever became of accounts and records, it adds up, and what does not is found."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.attrition.build import problems
from backfill_dagster.attrition.losses import AGES, KnownLot, losses, tenths
from backfill_dagster.attrition.steps import (
    ATTRITION_SCHEMA,
    NO_ACCOUNT,
    STEPS,
    UNKNOWN,
    Breakdown,
    Step,
    Unit,
    attrition_table,
    totals,
)
from backfill_dagster.repos.outcomes import FailureReason, Outcome
from backfill_dagster.tables.account_sums import sum_up
from backfill_dagster.tables.accounts import ACCOUNT_STATES, ACCOUNTS_SCHEMA
from backfill_dagster_tests.report.stored import account, did_of

REASONS = ["empty", "not_a_did", "handle_not_found", "duplicate", "excluded", "purged"]
NO_UNDATED = pl.DataFrame(schema={"did": pl.String, "date_quality": pl.String, "records": pl.Int64})
NO_AGES = pl.DataFrame(schema={"did": pl.String, "days": pl.Float64})


def with_snapshot(
    number: int, host: str | None = "one.test", state: str = "complete", **columns: Any
) -> dict[str, Any]:
    return account(number, host, state, **{"obtained": "repo", "records_absent": 0, **columns})


def without(
    number: int, state: str, reason: str | None = None, host: str | None = "one.test"
) -> dict[str, Any]:
    return account(number, host, state, reason=reason, records_absent=0, repo_rev=None, shown=True)


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=ACCOUNTS_SCHEMA, orient="row")


def table_of(
    rejects: list[str],
    rows: list[dict[str, Any]],
    undated: pl.DataFrame = NO_UNDATED,
    ages: pl.DataFrame = NO_AGES,
) -> pl.DataFrame:
    told, accounts = pl.DataFrame({"reason": rejects}, schema={"reason": pl.String}), frame(rows)
    whole = attrition_table(losses_of(told, [accounts], undated, ages))
    # In however many lots.
    assert attrition_table(losses_of(told, accounts.iter_slices(3), undated, ages)).equals(whole)
    return whole


def losses_of(
    rejects: pl.DataFrame,
    lots: Iterable[pl.DataFrame],
    undated: pl.DataFrame = NO_UNDATED,
    ages: pl.DataFrame = NO_AGES,
) -> pl.DataFrame:
    accounts = list(lots)
    known = (
        KnownLot(
            lot,
            *(told.join(lot, on="did", how="semi", maintain_order="left") for told in (undated, ages)),
        )
        for lot in accounts
    )
    seen = pl.col("obtained").is_not_null()
    listed = [lot.select("records_fetched", seen=seen) for lot in accounts]
    nobody = pl.DataFrame(schema={"records_fetched": pl.Int64, "seen": pl.Boolean})
    return losses(rejects, tenths(pl.concat([nobody, *listed])), known)


def found(rejects: list[str], rows: list[dict[str, Any]], table: pl.DataFrame) -> list[str]:
    return list(problems(table, sum_up(frame(rows).iter_slices(4)), len(rows), len(rejects)))


@st.composite
def accounts_of_any_kind(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = []
    for number in range(draw(st.integers(0, 25))):
        host = draw(st.sampled_from(["one.test", "two.test", None]))
        if draw(st.booleans()):
            filtered, rejected, kept, undated = (draw(st.integers(0, 9)) for _ in range(4))
            shown = draw(st.booleans())
            hidden = [{"reason": "account_inactive", "records": kept}] if kept and not shown else []
            chosen = [{"reason": "unwanted_type", "records": filtered}] if filtered else []
            here = kept if shown else 0
            rows.append(
                with_snapshot(
                    number,
                    host,
                    "complete" if shown else draw(st.sampled_from(["deactivated", "tombstoned"])),
                    shown=shown,
                    records_fetched=filtered + rejected + kept,
                    records_absent=draw(st.integers(0, 3)),
                    records_kept=here,
                    records_filtered=filtered + (kept - here),
                    records_rejected=rejected,
                    undated=min(undated, here),
                    filtered=chosen + hidden,
                    rejected=[{"reason": "bad_key", "records": rejected}] if rejected else [],
                )
            )
        else:
            state = draw(st.sampled_from(sorted(ACCOUNT_STATES - {"complete"})))
            reason = {
                "failed": draw(st.sampled_from([reason.value for reason in FailureReason])),
                "unresolved": "no_pds",
                "tombstoned": "tombstoned",
                "pending": draw(st.sampled_from([None, "not_asked"])),
            }.get(state)
            rows.append(without(number, state, reason, host))
    return rows


@given(st.lists(st.sampled_from(REASONS), max_size=12), accounts_of_any_kind())
@settings(max_examples=25)
def test_it_adds_up_whatever_became_of_everything(rejects: list[str], rows: list[dict[str, Any]]) -> None:
    table = table_of(rejects, rows)
    assert table.schema == ATTRITION_SCHEMA
    assert found(rejects, rows, table) == []
    for unit in Unit:
        assert list(totals(table, unit)) == list(STEPS[unit])
    assert totals(table, Unit.ACCOUNTS)[Step.VALID][0] == len(rejects) + len(rows)


SEVERAL = [
    with_snapshot(
        1,
        records_fetched=5,
        records_kept=3,
        records_rejected=2,
        undated=1,
        rejected=[{"reason": "bad_key", "records": 2}],
    ),
    with_snapshot(2, state="failed", reason="timed_out", records_fetched=4, records_kept=4),
    with_snapshot(3, "two.test"),
    with_snapshot(
        4,
        state="deactivated",
        shown=False,
        records_fetched=2,
        records_filtered=2,
        filtered=[{"reason": "account_inactive", "records": 2}],
    ),
    without(5, "failed", "unreachable", "two.test"),
    without(6, "failed", "bad_signature"),
    without(7, "takendown"),
    without(8, "unresolved", "no_pds", None),
    without(9, "pending"),
    without(10, "pending", "not_asked", None),
    without(11, "nothing_asked"),
    without(12, "complete"),
    without(13, "tombstoned", "tombstoned", None),
]


def test_each_is_lost_at_the_first_step_that_it_does_not_pass() -> None:
    table = table_of(["empty", "duplicate", "excluded", "purged"], SEVERAL)
    steps = totals(table, Unit.ACCOUNTS)
    assert {step: (lost, reasons) for step, (_, lost, _, reasons) in steps.items()} == {
        Step.VALID: (1, {"empty": 1}),
        Step.DISTINCT: (1, {"duplicate": 1}),
        Step.WANTED: (2, {"excluded": 1, "purged": 1}),
        Step.RESOLVED: (3, {"no_pds": 1, "not_asked": 1, "tombstoned": 1}),
        Step.ASKED: (1, {"nothing_asked": 1}),
        Step.REACHED: (2, {"pending": 1, "unreachable": 1}),
        Step.COMPLETE: (3, {"bad_signature": 1, "snapshot_lost": 1, "takendown": 1}),
        Step.ACTIVE: (1, {"deactivated": 1}),
        # A failed refresh takes nothing of what had been collected.
        Step.IN_TABLES: (1, {"no_record_kept": 1}),
    }
    assert steps[Step.IN_TABLES][2] == 2
    assert [left for _, _, left, _ in totals(table, Unit.RECORDS).values()] == [11, 11, 9, 7, 6]


def test_losses_are_told_apart_by_host_activity_and_age() -> None:
    rows = [
        with_snapshot(n, "one.test" if n % 2 else "two.test", records_fetched=n, records_kept=n)
        for n in range(40)
    ]
    rows[39] |= {"state": "suspended", "shown": False, "records_kept": 0, "records_filtered": 39}
    rows[39] |= {"filtered": [{"reason": "account_inactive", "records": 39}]}
    rows += [without(40 + n, "failed", "timed_out", "three.test") for n in range(3)]
    ages = pl.DataFrame({"did": [did_of(n) for n in range(3)], "days": [0.0, 30.0, 2000.0]})
    table = table_of(["empty"], rows, ages=ages)
    assert found(["empty"], rows, table) == []

    def entered(by: Breakdown, step: Step) -> dict[str, int]:
        own = table.filter(by=by.value, step=step.value)
        return dict(own.select("class", "entered").iter_rows())

    assert entered(Breakdown.HOST, Step.RESOLVED) == {
        "one.test": 20,
        "two.test": 20,
        "three.test": 3,
        NO_ACCOUNT: 0,
    }
    tenths = entered(Breakdown.ACTIVITY, Step.RESOLVED)
    assert list(tenths) == [*(str(tenth) for tenth in range(1, 11)), UNKNOWN, NO_ACCOUNT]
    assert list(tenths.values()) == [*[4] * 10, 3, 0]
    # Of the most active ones: 36, 37, 38 and 39 records.
    assert entered(Breakdown.ACTIVITY, Step.FOUND)["10"] == 36 + 37 + 38 + 39
    assert entered(Breakdown.AGE, Step.RESOLVED) == {
        AGES[0]: 1,
        AGES[1]: 1,
        AGES[-1]: 1,
        UNKNOWN: 40,
        NO_ACCOUNT: 0,
    }
    active = table.filter(by="activity", step="active").filter(pl.col("lost") > 0)
    assert active.select("class", "lost").rows() == [("10", 1)]


def test_undated_records_have_their_reasons_as_far_as_they_are_known() -> None:
    undated = pl.DataFrame(
        {
            "did": [did_of(1), did_of(1), did_of(2)],
            "date_quality": ["future", "missing", "future"],
            "records": [1, 2, 1],
        }
    )
    rows = [
        with_snapshot(1, records_fetched=5, records_kept=5, undated=3),
        with_snapshot(2, records_fetched=5, records_kept=5, undated=3),
    ]
    _, lost, left, reasons = totals(table_of([], rows, undated), Unit.RECORDS)[Step.DATED]
    assert (lost, left) == (6, 4)
    assert reasons == {"future": 2, "missing": 2, "undated": 2}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (pl.col("lost") + 1, "do not add up"),
        (
            pl.when(pl.col("place") == 3).then(pl.col("left") - 1).otherwise("left").alias("left"),
            "do not add up",
        ),
        (
            pl.when(pl.col("by") == "host").then(0).otherwise("entered").alias("entered"),
            "other sums by class",
        ),
        (pl.lit([], ATTRITION_SCHEMA["reasons"]).alias("reasons"), "do not add up"),
        (pl.col("place").cast(pl.Int64), "columns"),
    ],
)
def test_what_does_not_add_up_is_found(change: pl.Expr, told: str) -> None:
    table = table_of(["empty"], SEVERAL)
    assert found(["empty"], SEVERAL, table) == []
    assert any(told in problem for problem in found(["empty"], SEVERAL, table.with_columns(change)))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (SEVERAL[:-1], "entries of the source"),
        ([{**SEVERAL[0], "records_fetched": 6}, *SEVERAL[1:]], "records in the snapshots"),
        ([{**SEVERAL[0], "records_kept": 4}, *SEVERAL[1:]], "records kept"),
        ([{**SEVERAL[0], "records_rejected": 1}, *SEVERAL[1:]], "records rejected"),
        ([{**SEVERAL[0], "undated": 0}, *SEVERAL[1:]], "records undated"),
        ([*SEVERAL[:2], {**SEVERAL[2], "shown": False}, *SEVERAL[3:]], "accounts that are shown"),
        ([*SEVERAL[:2], {**SEVERAL[2], "obtained": None}, *SEVERAL[3:]], "accounts with a snapshot"),
    ],
)
def test_what_disagrees_with_what_is_stored_is_found(other: list[dict[str, Any]], told: str) -> None:
    told_of = found(["empty"], other, table_of(["empty"], SEVERAL))
    assert any(problem.startswith(told) for problem in told_of)


def test_records_that_are_not_accounted_for_are_found_in_the_table_that_is_made_of_them() -> None:
    """The sum over all ends of records is no longer what was counted in the trees."""
    rows = [with_snapshot(1, records_fetched=9, records_kept=3)]
    assert any(
        problem.startswith("records in the snapshots") for problem in found([], rows, table_of([], rows))
    )


def test_every_state_has_its_step() -> None:
    rows = [without(number, state) for number, state in enumerate(sorted(ACCOUNT_STATES))]
    lost = Counter(
        {step: lost for step, (_, lost, _, _) in totals(table_of([], rows), Unit.ACCOUNTS).items()}
    )
    assert lost.total() == len(ACCOUNT_STATES)
    assert Outcome.DELETED.value in totals(table_of([], rows), Unit.ACCOUNTS)[Step.COMPLETE][3]
