"""Findings about quality: each against made-up accounts that keep its threshold, and that break it."""

from typing import Any

import polars as pl
import pytest

from backfill_dagster.config.operation import Quality
from backfill_dagster.tables.account_sums import sum_up
from backfill_dagster.tables.accounts import ACCOUNTS_SCHEMA
from backfill_dagster.tables.quality import Finding, findings

NAMES = [
    "failed_accounts",
    "rejected_records",
    "undated_records",
    "records_with_issues",
    "loss_even_over_hosts",
    "loss_even_over_activity",
]


def account(number: int, **fields: Any) -> dict[str, Any]:
    records = fields.pop("records", 100)
    return {
        "did": f"did:plc:{number:024d}",
        "pds_host": f"pds{number % 4}.test",
        "state": "complete",
        "reason": None,
        "in_source": True,
        "repo_rev": "3kdgeujwlq32y",
        "records_fetched": records,
        "records_kept": records - fields.get("records_rejected", 0),
        "records_rejected": 0,
        "undated": 0,
        "with_issues": 0,
        **fields,
    }


def failed(number: int, **fields: Any) -> dict[str, Any]:
    return account(number, state="failed", reason="timed_out", repo_rev=None, records=0, **fields)


def found(rows: list[dict[str, Any]], **limits: float) -> dict[str, Finding]:
    frame = pl.DataFrame(rows, schema_overrides=ACCOUNTS_SCHEMA)
    missing = [
        pl.lit(None, dtype).alias(name)
        for name, dtype in ACCOUNTS_SCHEMA.items()
        if name not in frame.columns
    ]
    accounts = frame.with_columns(missing).select(ACCOUNTS_SCHEMA.names())
    told = findings(sum_up(accounts.iter_slices(7)), Quality(**limits))
    assert [finding.name for finding in told] == NAMES
    return {finding.name: finding for finding in told}


def broken(rows: list[dict[str, Any]], **limits: float) -> set[str]:
    return {name for name, finding in found(rows, **limits).items() if not finding.passed}


def test_a_collection_without_loss_passes() -> None:
    assert broken([account(number) for number in range(200)]) == set()


def test_an_empty_collection_passes() -> None:
    assert broken([account(0, in_source=False)]) == set()


@pytest.mark.parametrize(
    ("name", "rows", "limit", "share"),
    [
        ("failed_accounts", [*map(account, range(98)), failed(98), failed(99)], "max_failed_accounts", 0.02),
        (
            "rejected_records",
            [account(number, records_rejected=1) for number in range(10)],
            "max_rejected_records",
            0.01,
        ),
        (
            "undated_records",
            [account(number, undated=3) for number in range(10)],
            "max_undated_records",
            0.03,
        ),
        (
            "records_with_issues",
            [account(number, with_issues=6) for number in range(10)],
            "max_records_with_issues",
            0.06,
        ),
    ],
)
def test_each_share_is_held_against_its_threshold(
    name: str, rows: list[dict[str, Any]], limit: str, share: float
) -> None:
    assert broken(rows) == {name}
    assert found(rows)[name].share == pytest.approx(share)
    assert broken(rows, **{limit: share}) == set()


def test_loss_on_one_host_alone_is_uneven() -> None:
    lost = [failed(number) if number % 4 == 1 and number < 40 else account(number) for number in range(400)]
    finding = found(lost)["loss_even_over_hosts"]
    # 10 of 100 accounts of one host, 10 of all 400.
    assert finding.share == pytest.approx(10 / 100 - 10 / 400)
    assert not finding.passed
    assert finding.worst is not None
    assert finding.worst["pds_host"].to_list() == ["pds1.test"]


def test_the_same_loss_on_all_hosts_is_even() -> None:
    lost = [failed(number) if number < 40 else account(number) for number in range(400)]
    assert found(lost)["loss_even_over_hosts"].share == pytest.approx(0)


def test_a_host_of_few_accounts_says_nothing() -> None:
    rows = [*map(account, range(400)), *(failed(number, pds_host="small.test") for number in range(400, 419))]
    finding = found(rows)["loss_even_over_hosts"]
    assert finding.passed
    assert finding.numbers == {"hosts_compared": 4, "hosts_too_small_to_compare": 1}


def test_loss_among_active_accounts_is_uneven() -> None:
    rows = [
        account(
            number,
            records=10 * number,
            **({"state": "failed", "reason": "too_large"} if number >= 380 else {}),
        )
        for number in range(400)
    ]
    finding = found(rows)["loss_even_over_activity"]
    # Half of the most active tenth, 20 of all 400.
    assert finding.share == pytest.approx(20 / 40 - 20 / 400)
    assert finding.worst is not None
    assert finding.worst["tenth"].to_list() == [10]


def test_failures_of_accounts_that_were_never_seen_are_counted_apart() -> None:
    rows = [*map(account, range(100)), failed(100), failed(101), {**failed(102), "reason": "bad_tree"}]
    finding = found(rows)["loss_even_over_activity"]
    assert finding.numbers == {"failed_and_never_seen": 3, "of_these_for_their_size": 2}
    assert finding.share == 0
