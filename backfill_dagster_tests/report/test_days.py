from datetime import UTC, date, datetime

import pytest

from backfill_dagster.config.time_range import TimeRange
from backfill_dagster.report.days import DaySpan, observed_days

FIRST = datetime(2023, 2, 3, 4, tzinfo=UTC)
FETCH = datetime(2025, 6, 7, 8, tzinfo=UTC)


def period(start: str | None, end: str | None) -> TimeRange:
    return TimeRange.model_validate({"start_date": start, "end_date": end})


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2024-09-27", "2024-12-02", DaySpan(date(2024, 9, 27), date(2024, 12, 2))),
        (None, None, DaySpan(FIRST.date(), FETCH.date())),
        ("2024-09-27", "2030-01-01", DaySpan(date(2024, 9, 27), FETCH.date())),
        ("2025-06-07", "2025-06-07", DaySpan(date(2025, 6, 7), date(2025, 6, 7))),
        ("2025-06-08", None, None),
    ],
)
def test_days_of_a_period_as_far_as_they_were_seen(
    start: str | None, end: str | None, expected: DaySpan | None
) -> None:
    assert observed_days(period(start, end), FIRST, FETCH) == expected


def test_no_days_without_records_or_fetches() -> None:
    assert observed_days(period("2024-09-27", "2024-12-02"), FIRST, None) is None
    assert observed_days(period(None, "2024-12-02"), None, FETCH) is None


def test_weeks() -> None:
    span = DaySpan(date(2024, 11, 28), date(2025, 1, 2))
    assert span.length == 36
    assert span.weeks == 6
    assert span.last_week_days == 1
    assert span.week_start(5) == date(2025, 1, 2)
    assert DaySpan(date(2024, 1, 1), date(2024, 1, 7)).last_week_days == 7
