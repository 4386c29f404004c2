from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA
from backfill_dagster.repos.asked import NOTHING
from backfill_dagster.repos.packs import LEDGER_SCHEMA
from backfill_dagster.repos.snapshots import (
    FetchMode,
    account_states,
    accounts_to_fetch,
    current_hosts,
    snapshots,
)

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
START = datetime(2026, 1, 1, tzinfo=UTC)


def directory(
    state: str = "resolved", host: str | None = "new.test", day: int = 0, did: str = DID
) -> pl.DataFrame:
    row = {
        "did": did,
        "pds_host": host,
        "pds": f"https://{host}",
        "state": state,
        "reason": "words",
        "resolved_at": START + timedelta(days=day),
    }
    return pl.DataFrame([row], schema=DIRECTORY_SCHEMA)


def ledger(*attempts: dict[str, Any]) -> pl.DataFrame:
    rows = [
        {
            "did": DID,
            "pds_host": "new.test",
            "pack": f"pack{number}",
            **attempt,
            "fetched_at": START + timedelta(days=attempt["day"]),
        }
        for number, attempt in enumerate(attempts)
    ]
    return pl.DataFrame([{k: row.get(k) for k in LEDGER_SCHEMA} for row in rows], schema=LEDGER_SCHEMA)


def complete(day: int, rev: str = "r1", **more: Any) -> dict[str, Any]:
    return {"outcome": "complete", "repo_rev": rev, "records": 5, "day": day, **more}


def failed(day: int, **more: Any) -> dict[str, Any]:
    return {"outcome": "failed", "reason": "timed_out", "day": day, **more}


def state(frame: pl.DataFrame, attempts: pl.DataFrame) -> tuple[str, str | None]:
    row = account_states(frame, attempts).row(0, named=True)
    return row["state"], row["reason"]


def test_the_state_is_that_of_the_latest_attempt() -> None:
    assert state(directory(), ledger()) == ("pending", None)
    assert state(directory(), ledger(complete(1))) == ("complete", None)
    assert state(directory(), ledger(complete(1), failed(2))) == ("failed", "timed_out")
    assert state(directory(), ledger(complete(1), {"outcome": "deactivated", "day": 2})) == (
        "deactivated",
        None,
    )
    assert state(directory(), ledger({"outcome": "deactivated", "day": 1}, complete(2))) == ("complete", None)


def test_an_unchanged_repository_means_a_complete_account() -> None:
    attempts = ledger(complete(1), {"outcome": "deactivated", "day": 2}, {"outcome": "unchanged", "day": 3})
    assert state(directory(), attempts) == ("complete", None)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("tombstoned", ("tombstoned", "tombstoned")),
        ("not_found", ("unresolved", "not_found")),
        ("no_pds", ("unresolved", "no_pds")),
        ("unreachable", ("unresolved", "unreachable")),
    ],
)
def test_what_the_directory_says_outweighs_an_earlier_fetch(word: str, expected: tuple[str, str]) -> None:
    assert state(directory(word, host=None), ledger(complete(1))) == expected


def chosen(frame: pl.DataFrame, attempts: pl.DataFrame) -> str | None:
    found = snapshots(frame, attempts)
    return None if found.is_empty() else str(found["pack"][0])


def test_a_failure_or_a_state_never_destroys_a_snapshot() -> None:
    attempts = ledger(complete(1), failed(2), {"outcome": "deactivated", "day": 3})
    assert chosen(directory(), attempts) == "pack0"


def test_the_highest_revision_at_home_is_the_snapshot() -> None:
    assert chosen(directory(), ledger(complete(1, "r1"), complete(2, "r3"), complete(3, "r2"))) == "pack1"
    assert chosen(directory(), ledger(complete(1, "r2"), complete(2, "r2"))) == "pack1"
    assert chosen(directory(), ledger()) is None


def test_a_repository_from_the_present_host_supersedes_a_higher_revision_from_an_old_one() -> None:
    attempts = ledger(complete(1, "r9", pds_host="old.test"), complete(2, "r1"))
    assert chosen(directory(), attempts) == "pack1"
    # Until the present host has been read, the old one's repository stands.
    assert chosen(directory(day=5), ledger(complete(1, "r9", pds_host="old.test"))) == "pack0"


def test_the_latest_word_says_where_an_account_lives() -> None:
    moved = ledger(failed(2, pds_host="elsewhere.test"))
    assert current_hosts(directory(day=1), moved)["current_host"].to_list() == ["elsewhere.test"]
    assert current_hosts(directory(day=3), moved)["current_host"].to_list() == ["new.test"]


@pytest.mark.parametrize(
    ("attempts", "unsettled", "failed_only"),
    [
        ([], True, False),
        ([complete(1)], False, False),
        ([failed(1)], True, True),
        ([complete(1), failed(2)], True, True),
        ([failed(1), complete(2)], False, False),
        ([{"outcome": "takendown", "day": 1}], False, False),
        ([{"outcome": "unchanged", "day": 1}], False, False),
        ([complete(1, pds_host="old.test")], True, False),
    ],
)
def test_what_a_fetch_is_for(attempts: list[dict[str, Any]], unsettled: bool, failed_only: bool) -> None:
    made = ledger(*attempts)
    # Resolved after the attempts, so that the directory has the last word on the host.
    frame = directory(day=9)
    assert accounts_to_fetch(frame, made, FetchMode.UNSETTLED, signed=False).height == unsettled
    assert accounts_to_fetch(frame, made, FetchMode.FAILED, signed=False).height == failed_only
    assert accounts_to_fetch(frame, made, FetchMode.REFRESH, signed=False).height == 1


def test_refreshing_knows_the_revision_only_of_a_snapshot_from_the_present_host() -> None:
    def known(*attempts: dict[str, Any]) -> str | None:
        chosen = accounts_to_fetch(directory(day=9), ledger(*attempts), FetchMode.REFRESH, signed=False)
        rev: str | None = chosen["known_rev"].item()
        return rev

    assert known(complete(1, "r7")) == "r7"
    assert known(complete(1, "r7", pds_host="old.test")) is None
    assert known(failed(1)) is None


def test_accounts_that_the_directory_cannot_place_are_never_fetched() -> None:
    for mode in FetchMode:
        assert accounts_to_fetch(
            directory("no_pds", host=None), ledger(failed(1)), mode, signed=False
        ).is_empty()


@pytest.mark.parametrize(("signed_by", "fetched"), [(None, True), ("current", False), ("previous", False)])
def test_a_snapshot_whose_signature_nobody_checked_does_not_settle_a_study_that_wants_it(
    signed_by: str | None, fetched: bool
) -> None:
    made = ledger(complete(1, signed_by=signed_by))
    assert accounts_to_fetch(directory(), made, FetchMode.UNSETTLED, signed=True).height == fetched
    assert accounts_to_fetch(directory(), made, FetchMode.UNSETTLED, signed=False).height == 0
    known = accounts_to_fetch(directory(), made, FetchMode.REFRESH, signed=True)["known_rev"].item()
    assert (known is None) == fetched


def asks(asked: str | None, frame: pl.DataFrame | None = None) -> pl.DataFrame:
    return (directory() if frame is None else frame).with_columns(asked=pl.lit(asked, pl.String))


def to_fetch(frame: pl.DataFrame, attempts: pl.DataFrame, mode: FetchMode = FetchMode.UNSETTLED) -> int:
    return accounts_to_fetch(frame, attempts, mode, signed=False).height


def test_an_account_is_settled_only_by_an_attempt_for_what_is_asked_now() -> None:
    attempts = ledger(complete(1, asked="one list"))
    assert to_fetch(asks("one list"), attempts) == 0
    assert to_fetch(asks("another list"), attempts) == 1
    # The whole repository, which is also what a directory without the column asks for.
    assert to_fetch(asks(None), attempts) == to_fetch(directory(), attempts) == 1
    assert to_fetch(asks("one list"), ledger(complete(1))) == 1
    assert to_fetch(asks("one list"), ledger({"outcome": "deactivated", "day": 1, "asked": "one list"})) == 0
    assert to_fetch(asks("another list"), attempts, FetchMode.FAILED) == 0


def test_an_account_that_was_asked_for_something_else_is_pending() -> None:
    attempts = ledger(complete(1, asked="one list"))
    assert state(asks("one list"), attempts) == ("complete", None)
    assert state(asks("another list"), attempts) == ("pending", None)
    unchanged = {"outcome": "unchanged", "day": 2, "asked": "one list"}
    assert state(asks("one list"), ledger(complete(1, asked="one list"), unchanged)) == ("complete", None)
    assert state(asks("another list"), ledger(complete(1, asked="one list"), unchanged)) == ("pending", None)
    # What is the matter with it is known all the same.
    assert state(asks("another list"), ledger(failed(1, asked="one list"))) == ("failed", "timed_out")


def test_an_account_of_which_nothing_is_asked_is_not_fetched_and_says_so() -> None:
    for attempts in (ledger(), ledger(complete(1)), ledger(failed(1))):
        assert state(asks(NOTHING), attempts) == ("nothing_asked", None)
        assert [to_fetch(asks(NOTHING), attempts, mode) for mode in FetchMode] == [0, 0, 0]
    assert state(asks(NOTHING, directory("tombstoned", host=None)), ledger()) == ("tombstoned", "tombstoned")


def test_what_was_asked_as_it_is_now_is_the_snapshot_whatever_its_revision() -> None:
    attempts = ledger(complete(1, "r9", asked="one list"), complete(2, "r1", asked="another list"))
    assert chosen(asks("another list"), attempts) == "pack1"
    assert chosen(asks("one list"), attempts) == "pack0"
    # Until what is asked now has come, what came before stands.
    assert chosen(asks("a third list"), attempts) == "pack0"


def test_a_listing_without_a_revision_gives_way_to_a_later_one() -> None:
    attempts = ledger(complete(1, asked="x", repo_rev=None), complete(2, asked="x", repo_rev=None))
    assert chosen(asks("x"), attempts) == "pack1"


def test_a_refresh_knows_only_the_revision_of_what_is_asked_now() -> None:
    attempts = ledger(complete(1, "r1", asked="one list"))
    for asked, known in (("one list", "r1"), ("another list", None)):
        found = accounts_to_fetch(asks(asked), attempts, FetchMode.REFRESH, signed=False)
        assert found["known_rev"].item() == known


def test_records_that_are_all_said_not_to_be_there_lack_no_signature() -> None:
    denied = complete(1, asked="x", obtained="record_proof", repo_rev=None)
    proven = complete(1, asked="x", obtained="record_proof")
    for attempt, fetched in ((denied, 0), (proven, 1)):
        found = accounts_to_fetch(asks("x"), ledger(attempt), FetchMode.UNSETTLED, signed=True)
        assert found.height == fetched
