"""What the directory has said of accounts: kept when it changes, and at no other time."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import polars as pl

from backfill_dagster.directory.history import ANSWERS_SCHEMA, dated_answers, with_new_answers
from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA

NOON = datetime(2024, 10, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def directory(hour: int, **rows: tuple[str, str | None, str | None]) -> pl.DataFrame:
    """Return what lookups at this hour came to: state, handle and host by account."""
    return pl.DataFrame(
        [
            {
                "did": did,
                "state": state,
                "handle": handle,
                "pds_host": host,
                "resolved_at": NOON + hour * HOUR,
            }
            for did, (state, handle, host) in rows.items()
        ],
        schema=DIRECTORY_SCHEMA,
    )


A, B, GONE = (
    ("resolved", "a.test", "one.test"),
    ("resolved", "a.test", "two.test"),
    ("tombstoned", None, None),
)


def said(answers: pl.DataFrame) -> list[tuple[str, str, int, int | None]]:
    """Return account, host or state, and the hours of the first and the last sighting."""
    hours = [(pl.col(name) - NOON).dt.total_hours() for name in ("first_seen", "last_seen")]
    rows: list[tuple[str, str, int, int | None]] = answers.select(
        "did", pl.coalesce("pds_host", "state"), *hours
    ).rows()
    return rows


def test_only_what_is_new_is_kept() -> None:
    first = directory(0, x=A, y=A)
    answers = with_new_answers(None, None, first)
    assert said(answers) == [("x", "one.test", 0, None), ("y", "one.test", 0, None)]
    later = directory(1, x=A, y=A)
    assert with_new_answers(answers, first, later).equals(answers)
    moved = with_new_answers(answers, later, directory(5, x=A, y=B, z=GONE))
    assert said(moved) == [
        ("x", "one.test", 0, None),
        ("y", "one.test", 0, 1),
        ("y", "two.test", 5, None),
        ("z", "tombstoned", 5, None),
    ]
    assert moved.schema == ANSWERS_SCHEMA


def test_back_and_forth_are_three_answers() -> None:
    steps = [directory(hour, x=what) for hour, what in enumerate([A, B, A, A])]
    answers = with_new_answers(None, None, steps[0])
    for before, after in pairwise(steps):
        answers = with_new_answers(answers, before, after)
    assert said(answers) == [("x", "one.test", 0, 0), ("x", "two.test", 1, 1), ("x", "one.test", 2, None)]
    assert said(dated_answers(answers, steps[3])) == [
        ("x", "one.test", 0, 0),
        ("x", "two.test", 1, 1),
        ("x", "one.test", 2, 3),
    ]


def test_a_failure_is_no_answer() -> None:
    first = directory(0, x=A)
    answers = with_new_answers(None, None, first)
    failed = directory(1, x=("unreachable", None, None), y=("server_error", None, None))
    assert with_new_answers(answers, first, failed).equals(answers)
    assert said(with_new_answers(answers, failed, directory(2, x=B))) == [
        ("x", "one.test", 0, 0),
        ("x", "two.test", 2, None),
    ]


def test_a_study_of_an_older_version_begins_with_what_it_knows() -> None:
    earlier = directory(0, x=A, left=A)
    now = directory(3, x=B, left=A)
    assert said(with_new_answers(None, earlier, now)) == [
        ("left", "one.test", 0, None),
        ("x", "one.test", 0, 0),
        ("x", "two.test", 3, None),
    ]
    assert said(dated_answers(None, now)) == [("x", "two.test", 3, 3), ("left", "one.test", 3, 3)]


def test_an_interrupted_run_that_kept_the_answers_keeps_them_once() -> None:
    first, second = directory(0, x=A), directory(1, x=B)
    answers = with_new_answers(with_new_answers(None, None, first), first, second)
    assert with_new_answers(answers, first, directory(2, x=B)).equals(answers)
