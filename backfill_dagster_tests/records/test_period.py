from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.records.period import is_in_period, normalised_date, sync_timestamp
from backfill_dagster.records.settings import RecordSettings, StudyPeriod
from backfill_dagster.records.tables import COLLECTIONS

CREATED_AT = pl.col("created_at")


def at(*fields: int) -> datetime:
    return datetime(*fields, tzinfo=UTC)  # type: ignore[arg-type, misc]


def column(created_at: Sequence[datetime | None]) -> pl.DataFrame:
    return pl.DataFrame({"created_at": created_at}, schema={"created_at": pl.Datetime("us", "UTC")})


def normalised(created_at: datetime) -> datetime:
    """Write the field guide's rule down as slowly and plainly as can be."""
    if created_at.day <= 15:
        return datetime(created_at.year, created_at.month, 15, tzinfo=UTC)
    if created_at.month == 12:
        return datetime(created_at.year + 1, 1, 1, tzinfo=UTC)
    return datetime(created_at.year, created_at.month + 1, 1, tzinfo=UTC)


instants = st.datetimes(datetime(1, 1, 1), datetime(9999, 11, 30), timezones=st.just(UTC))  # noqa: DTZ001


@given(st.lists(instants, min_size=1, max_size=20), st.none() | instants, st.none() | instants)
def test_the_rule_is_the_plain_one(
    created_at: list[datetime], start: datetime | None, end: datetime | None
) -> None:
    if start is not None and end is not None and start > end:
        start, end = end, start
    inside = is_in_period(CREATED_AT, StudyPeriod(start, end))

    found = column(created_at).select(inside=inside, filed=sync_timestamp(CREATED_AT, inside)).rows()

    for instant, (is_inside, filed) in zip(created_at, found, strict=True):
        assert is_inside == ((start is None or start <= instant) and (end is None or instant <= end))
        assert filed == (instant if is_inside else normalised(instant))


@pytest.mark.parametrize(
    ("created_at", "filed"),
    [
        (at(2024, 8, 1), at(2024, 8, 15)),
        (at(2024, 8, 15, 23, 59, 59, 999_999), at(2024, 8, 15)),
        (at(2024, 8, 16), at(2024, 9, 1)),
        (at(2024, 8, 31, 23, 59), at(2024, 9, 1)),
        (at(2024, 12, 20), at(2025, 1, 1)),
        (at(2024, 2, 29), at(2024, 3, 1)),
        # The defect that the old system is known for: this date is inside its study period.
        (at(2024, 9, 20), at(2024, 10, 1)),
    ],
)
def test_normalised_dates(created_at: datetime, filed: datetime) -> None:
    assert column([created_at]).select(normalised_date(CREATED_AT)).item() == filed


def test_both_ends_are_inside_to_the_microsecond() -> None:
    period = StudyPeriod(at(2024, 9, 27), at(2024, 12, 2))
    tick = timedelta(microseconds=1)
    dates: list[datetime | None] = [
        at(2024, 9, 27) - tick,
        at(2024, 9, 27),
        at(2024, 12, 2),
        at(2024, 12, 2) + tick,
        None,
    ]
    found = column(dates).select(is_in_period(CREATED_AT, period)).to_series().to_list()
    assert found == [False, True, True, False, False]


def test_an_end_in_another_zone_is_the_same_instant() -> None:
    tokyo = timezone(timedelta(hours=9))
    period = StudyPeriod(datetime(2024, 9, 27, 9, tzinfo=tokyo), None)
    found = column([at(2024, 9, 26, 23, 59), at(2024, 9, 27)]).select(is_in_period(CREATED_AT, period))
    assert found.to_series().to_list() == [False, True]


def test_periods_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        StudyPeriod(datetime(2024, 9, 27), None)  # noqa: DTZ001
    with pytest.raises(ValueError, match="after its end"):
        StudyPeriod(at(2024, 12, 2), at(2024, 9, 27))
    assert StudyPeriod(at(2024, 9, 27), at(2024, 9, 27)).start == at(2024, 9, 27)


def test_settings_that_would_keep_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no record type"):
        RecordSettings(frozenset(), StudyPeriod(), "drop")
    with pytest.raises(ValueError, match=r"no table for \['app.bsky.feed.generator'\]"):
        RecordSettings(frozenset({*COLLECTIONS, "app.bsky.feed.generator"}), StudyPeriod(), "drop")
