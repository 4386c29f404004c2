import dagster as dg
import pytest

from backfill_dagster.config import TimeRange
from backfill_dagster.orchestration.partitions import covering_range, month_partitions
from backfill_dagster.tables.months import study_months


def period(**parts: object) -> TimeRange:
    return TimeRange.model_validate(parts)


def test_dagster_s_own_monthly_partitions_leave_out_months_that_they_hold_only_part_of() -> None:
    own = dg.MonthlyPartitionsDefinition(start_date="2024-09-27", end_date="2024-12-02")
    assert own.get_partition_keys() == ["2024-10-01", "2024-11-01"]


@pytest.mark.parametrize(
    ("parts", "first", "last", "count"),
    [
        ({"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}, "2024-09", "2024-12", 4),
        ({"start_date": "2024-09-27", "end_date": "2024-11-30", "outside": "drop"}, "2024-09", "2024-11", 3),
        ({"start_date": "2024-09-01", "end_date": "2024-09-01", "outside": "drop"}, "2024-09", "2024-09", 1),
        ({"start_date": "2024-01-01", "end_date": "2024-12-31", "outside": "drop"}, "2024-01", "2024-12", 12),
        ({"start_date": "2020-01-01", "end_date": "2022-12-31", "outside": "drop"}, "2022-11", "2022-12", 2),
    ],
)
def test_months_cover_the_whole_period(parts: dict[str, str], first: str, last: str, count: int) -> None:
    time_range = period(**parts)
    keys = month_partitions(time_range).get_partition_keys()
    assert (keys[0], keys[-1], len(keys)) == (first, last, count)
    assert list(keys) == study_months(time_range)


@pytest.mark.parametrize("parts", [{}, {"start_date": "2024-09-27", "outside": "drop"}])
def test_open_months_run_to_the_current_one(parts: dict[str, str]) -> None:
    time_range = period(**parts)
    assert list(month_partitions(time_range).get_partition_keys()) == study_months(time_range)


def test_one_range_covers_scattered_hosts_in_the_order_of_the_partitions() -> None:
    keys = ["c", "a", "d", "b"]
    assert covering_range(keys, ["b", "a"]) == ("a", "b")
    assert covering_range(keys, ["d"]) == ("d", "d")
    assert covering_range(keys, ["x"]) is None
