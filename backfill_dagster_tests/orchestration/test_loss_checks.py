"""The checks of what was lost say what is wrong."""

import dagster as dg
import polars as pl
import pytest

from backfill_dagster.attrition.build import Attrition
from backfill_dagster.attrition.steps import ATTRITION_SCHEMA
from backfill_dagster.orchestration.loss_checks import (
    account_history_check_results,
    account_history_checks,
    attrition_check_results,
    attrition_checks,
    record_changes_check_results,
    record_changes_checks,
)
from backfill_dagster.survivorship.build import AccountHistory, RecordChanges


def passed(results: list[dg.AssetCheckResult]) -> dict[str | None, bool]:
    return {result.check_name: result.passed for result in results}


def changes(**wrong: int) -> RecordChanges:
    return RecordChanges(
        **{"rows": 3, "files": 1, "compared": 2, "unaccounted": 0, "misfits": 0, "repeated": 0, **wrong},
        by_ending=pl.DataFrame(),
    )


@pytest.mark.parametrize(
    ("wrong", "failing"),
    [("unaccounted", "changes_reconcile"), ("misfits", "times_in_order"), ("repeated", "keys_are_unique")],
)
def test_each_fault_of_the_changes_fails_its_check(wrong: str, failing: str) -> None:
    assert all(passed(list(record_changes_check_results(changes()))).values())
    found = passed(list(record_changes_check_results(changes(**{wrong: 1}))))
    assert [name for name, good in found.items() if not good] == [failing]
    key = dg.AssetKey("x")
    assert {spec.name for spec in record_changes_checks(key) if spec.blocking} == set(found)


def test_what_does_not_add_up_fails_the_check_and_is_named() -> None:
    good = Attrition(ATTRITION_SCHEMA.to_frame(), "", ())
    bad = Attrition(ATTRITION_SCHEMA.to_frame(), "", ("2 rows do not add up",))
    [result] = attrition_check_results(bad)
    assert not result.passed
    assert "2 rows do not add up" in str(result.metadata)
    assert passed(list(attrition_check_results(good))) == {"losses_add_up": True}
    assert [spec.blocking for spec in attrition_checks(dg.AssetKey("x"))] == [True]


def test_a_history_out_of_order_fails_its_check() -> None:
    good, bad = (AccountHistory(3, pl.DataFrame(), misfits) for misfits in (0, 2))
    assert passed(list(account_history_check_results(good))) == {"times_in_order": True}
    assert passed(list(account_history_check_results(bad))) == {"times_in_order": False}
    assert [spec.blocking for spec in account_history_checks(dg.AssetKey("x"))] == [True]
