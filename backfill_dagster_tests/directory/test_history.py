from datetime import UTC, datetime

import polars as pl

from backfill_dagster.directory.history import with_state_since


def rows(*entries: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [(did, state, datetime(2026, 5, day, tzinfo=UTC)) for did, state, day in entries],
        schema={"did": pl.String, "state": pl.String, "resolved_at": pl.Datetime("us", "UTC")},
        orient="row",
    )


def since(frame: pl.DataFrame) -> list[int]:
    return [moment.day for moment in frame["state_since"]]


def test_a_state_began_when_it_was_first_seen() -> None:
    first = with_state_since(rows(("a", "resolved", 1), ("b", "tombstoned", 1)), None)
    assert since(first) == [1, 1]
    second = with_state_since(
        rows(("a", "tombstoned", 2), ("b", "tombstoned", 2), ("c", "resolved", 2)), first
    )
    assert since(second) == [2, 1, 2]
    third = with_state_since(rows(("a", "tombstoned", 9), ("b", "resolved", 9)), second)
    assert since(third) == [2, 9]


def test_a_directory_without_the_column_says_when_it_was_last_seen() -> None:
    later = with_state_since(rows(("a", "tombstoned", 9)), rows(("a", "tombstoned", 3)))
    assert since(later) == [3]
    assert later.columns == ["did", "state", "resolved_at", "state_since"]
