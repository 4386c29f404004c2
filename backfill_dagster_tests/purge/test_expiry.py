from datetime import UTC, datetime

import polars as pl

from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA
from backfill_dagster.purge.expiry import GONE_STATES, expired_accounts
from backfill_dagster.repos.packs import LEDGER_SCHEMA
from backfill_dagster.tables.accounts import INACTIVE_STATES

HOST = "pds.test"


def day(number: int) -> datetime:
    return datetime(2026, 5, number, tzinfo=UTC)


def directory(*entries: tuple[str, str, int]) -> pl.DataFrame:
    resolved = [
        {"did": did, "state": state, "pds_host": HOST, "resolved_at": day(20), "state_since": day(since)}
        for did, state, since in entries
    ]
    return pl.DataFrame(resolved, schema={**DIRECTORY_SCHEMA, "state_since": pl.Datetime("us", "UTC")})


def ledger(*entries: tuple[str, int, str]) -> pl.DataFrame:
    rows = [
        {
            "did": did,
            "fetched_at": day(number),
            "outcome": outcome,
            "pds_host": HOST,
            "pack": f"{number:020x}",
        }
        for did, number, outcome in entries
    ]
    return pl.DataFrame(rows, schema=LEDGER_SCHEMA)


def test_the_time_runs_from_the_first_answer_of_the_last_unbroken_series() -> None:
    accounts = directory(("a", "resolved", 1), ("b", "resolved", 1), ("c", "resolved", 1))
    attempts = ledger(
        ("a", 2, "deleted"),
        ("a", 3, "failed"),
        ("a", 8, "deleted"),
        ("b", 2, "deleted"),
        ("b", 3, "complete"),
        ("b", 8, "deleted"),
        ("c", 2, "deleted"),
        ("c", 9, "complete"),
    )
    assert expired_accounts(accounts, attempts, GONE_STATES, day(1)) == []
    assert expired_accounts(accounts, attempts, GONE_STATES, day(2)) == ["a"]
    assert expired_accounts(accounts, attempts, GONE_STATES, day(7)) == ["a"]
    assert expired_accounts(accounts, attempts, GONE_STATES, day(9)) == ["a", "b"]


def test_a_tombstone_of_the_directory_counts_from_when_it_was_first_seen() -> None:
    accounts = directory(("a", "tombstoned", 4), ("b", "not_found", 4))
    attempts = ledger(("a", 1, "complete"))
    assert expired_accounts(accounts, attempts, GONE_STATES, day(3)) == []
    assert expired_accounts(accounts, attempts, GONE_STATES, day(4)) == ["a"]
    older = accounts.drop("state_since")
    assert expired_accounts(older, attempts, GONE_STATES, day(19)) == []
    assert expired_accounts(older, attempts, GONE_STATES, day(20)) == ["a"]


def test_other_inactive_states_only_if_asked_for_and_failures_never() -> None:
    accounts = directory(("a", "resolved", 1), ("b", "resolved", 1))
    attempts = ledger(("a", 2, "deactivated"), ("b", 2, "deleted"), ("b", 3, "failed"))
    assert expired_accounts(accounts, attempts, GONE_STATES, day(9)) == []
    assert expired_accounts(accounts, attempts, INACTIVE_STATES, day(9)) == ["a"]
