"""Which snapshots can be compared, and until when each held, on ledgers written by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from backfill_dagster.repos.packs import LEDGER_SCHEMA
from backfill_dagster.survivorship.chains import CHAIN_SCHEMA, snapshot_chains
from backfill_dagster.survivorship.comparison import Comparison, comparisons

NOON = datetime(2024, 10, 1, 12, tzinfo=UTC)


def attempt(hour: int, outcome: str = "complete", rev: str | None = "r1", **columns: Any) -> dict[str, Any]:
    return {
        "did": "x",
        "outcome": outcome,
        "repo_rev": rev,
        "fetched_at": NOON + timedelta(hours=hour),
        "pds_host": "one.test",
        "pack": f"{hour:02d}",
        **columns,
    }


def chains(*attempts: dict[str, Any]) -> pl.DataFrame:
    ledger = pl.DataFrame(attempts, schema=LEDGER_SCHEMA).sort("did", "fetched_at", "pack")
    found = snapshot_chains(ledger)
    assert found.schema == CHAIN_SCHEMA
    return found


def told(found: pl.DataFrame) -> list[tuple[int | None, ...]]:
    """Return the hours of: the fetch, the last confirmation, the snapshot before and its last one, the one after."""
    names = ("fetched_at", "confirmed_at", "before_at", "before_confirmed_at", "next_at")
    hours = [(pl.col(name) - NOON).dt.total_hours() for name in names]
    rows: list[tuple[int | None, ...]] = found.select(hours).rows()
    return rows


def test_snapshots_follow_each_other_and_unchanged_ones_confirm_them() -> None:
    found = chains(
        attempt(0),
        attempt(1, "unchanged"),
        attempt(2, "failed", None),
        attempt(3, "deactivated", None),
        attempt(4, "unchanged"),
        attempt(5, rev="r2"),
        attempt(6, "unchanged", "r2"),
        attempt(0, did="y"),
    )
    assert told(found) == [(0, 4, None, None, 5), (5, 6, 0, 4, None), (0, 0, None, None, None)]
    assert found["confirmations"].to_list() == [2, 1, 0]
    assert found["first_at"].to_list() == [NOON, NOON, NOON]
    assert found["last_at"][0] == NOON + timedelta(hours=5)


def test_that_another_revision_is_unchanged_confirms_nothing() -> None:
    assert told(chains(attempt(0), attempt(1, rev="r2"), attempt(2, "unchanged", "r1"))) == [
        (0, 0, None, None, 1),
        (1, 1, 0, 0, None),
    ]


def test_a_host_that_has_gone_back_to_an_older_revision_is_passed_over() -> None:
    """What its copy lacks is not gone, and is not new when it is there again."""
    found = chains(attempt(0, rev="r2"), attempt(1, rev="r1"), attempt(2, rev="r3"))
    assert told(found) == [(0, 0, None, None, 2), (2, 2, 0, 0, None)]
    # Nobody signs the revision of a listing, and proofs can be of several.
    listed = {"obtained": "list_records", "asked": "d"}
    assert len(told(chains(attempt(0, rev="r2", **listed), attempt(1, rev="r1", **listed)))) == 2


def test_what_was_asked_for_differently_is_not_compared() -> None:
    one, other = {"obtained": "record_proof", "asked": "1"}, {"obtained": "record_proof", "asked": "2"}
    found = chains(attempt(0, **one), attempt(1, **one), attempt(2, **other), attempt(3), attempt(4, **one))
    assert told(found) == [
        (0, 0, None, None, 1),
        (1, 1, 0, 0, None),
        (2, 2, None, None, None),
        (3, 3, None, None, None),
        (4, 4, None, None, None),
    ]
    # Packs of older versions do not say how they were obtained.
    assert told(chains(attempt(0), attempt(1, obtained="repo")))[1][2] == 0


def test_an_attempt_that_stands_in_two_packs_counts_once() -> None:
    assert told(chains(attempt(0), attempt(0, pack="ff"))) == [(0, 0, None, None, None)]


def test_an_account_that_moved_is_compared_across_its_hosts() -> None:
    found = chains(
        attempt(0), attempt(1, pds_host="two.test"), attempt(0, did="y"), attempt(2, did="y", pack="01")
    )
    assert [(each.pds_host, each.pack, each.before) for each in comparisons(found)] == [
        ("one.test", "01", (("one.test", "00", ("y",)),)),
        ("two.test", "01", (("one.test", "00", ("x",)),)),
    ]


def test_a_comparison_with_another_pack_is_another_one() -> None:
    one = Comparison("h", "p", (("h", "q", ("x", "y")),))
    others = [
        Comparison("h", "p", (("h", "q", ("x",)),)),
        Comparison("h", "p", (("h", "r", ("x", "y")),)),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == 3
    assert {other.key for other in others} == {one.key}
