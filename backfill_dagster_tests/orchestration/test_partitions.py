from datetime import UTC, datetime
from itertools import pairwise

import dagster as dg
import pytest

from backfill_dagster.config.time_range import TimeRange
from backfill_dagster.orchestration.partitions import covering_range, time_partitions
from backfill_dagster.records.windows import study_windows

NOW = datetime(2025, 1, 15, 12, tzinfo=UTC)


def period(**parts: object) -> TimeRange:
    return TimeRange.model_validate(parts)


def dropping(start: str, end: str) -> dict[str, str]:
    return {"start_date": start, "end_date": end, "outside": "drop"}


@pytest.mark.parametrize(
    ("own", "keys"),
    [
        (
            dg.MonthlyPartitionsDefinition(start_date="2024-09-27", end_date="2024-12-02"),
            ["2024-10-01", "2024-11-01"],
        ),
        (
            dg.WeeklyPartitionsDefinition(start_date="2024-10-01", end_date="2024-10-24", day_offset=1),
            ["2024-10-07", "2024-10-14"],
        ),
        (
            dg.DailyPartitionsDefinition(
                start_date="2024-10-01-01", end_date="2024-10-03-23", fmt="%Y-%m-%d-%H"
            ),
            ["2024-10-02-00"],
        ),
    ],
)
def test_dagster_s_own_partitions_leave_out_windows_that_they_hold_only_part_of(
    own: dg.TimeWindowPartitionsDefinition, keys: list[str]
) -> None:
    assert own.get_partition_keys() == keys


@pytest.mark.parametrize(
    ("partitions", "parts", "first", "last", "count"),
    [
        ("monthly", dropping("2024-09-27", "2024-12-02"), "2024-09", "2024-12", 4),
        ("monthly", dropping("2024-09-27", "2024-11-30"), "2024-09", "2024-11", 3),
        ("monthly", dropping("2024-09-01", "2024-09-01"), "2024-09", "2024-09", 1),
        ("monthly", dropping("2024-01-01", "2024-12-31"), "2024-01", "2024-12", 12),
        ("monthly", dropping("2020-01-01", "2022-12-31"), "2022-11", "2022-12", 2),
        # 2024-09-27 is a Friday, 2024-12-02 a Monday, 2024-12-01 a Sunday.
        ("weekly", dropping("2024-09-27", "2024-12-02"), "2024-09-23", "2024-12-02", 11),
        ("weekly", dropping("2024-09-23", "2024-12-01"), "2024-09-23", "2024-11-25", 10),
        ("weekly", dropping("2024-12-30", "2025-01-01"), "2024-12-30", "2024-12-30", 1),
        ("weekly", dropping("2020-01-01", "2022-11-07"), "2022-10-31", "2022-11-07", 2),
        ("daily", dropping("2024-09-27", "2024-12-02"), "2024-09-27", "2024-12-02", 67),
        ("daily", dropping("2024-02-28-23:00:00", "2024-03-01-00:00:00"), "2024-02-28", "2024-03-01", 3),
        ("daily", dropping("2020-01-01", "2022-11-02"), "2022-11-01", "2022-11-02", 2),
    ],
)
def test_windows_cover_the_whole_period(
    partitions: str, parts: dict[str, str], first: str, last: str, count: int
) -> None:
    time_range = period(partitions=partitions, **parts)
    keys = time_partitions(time_range).get_partition_keys()
    assert (keys[0], keys[-1], len(keys)) == (first, last, count)
    assert list(keys) == study_windows(time_range)


@pytest.mark.parametrize(
    ("partitions", "first", "last"),
    [
        ("monthly", "2022-11", "2025-01"),
        ("weekly", "2022-10-31", "2025-01-13"),
        ("daily", "2022-11-01", "2025-01-15"),
    ],
)
@pytest.mark.parametrize(
    "parts", [{}, {"outside": "drop", "start_date": "2022-11-01"}, dropping("2022-11-01", "2100-01-01")]
)
def test_open_windows_run_to_the_current_one(
    parts: dict[str, str], partitions: str, first: str, last: str
) -> None:
    time_range = period(partitions=partitions, **parts)
    keys = list(time_partitions(time_range).get_partition_keys(current_time=NOW))
    assert (keys[0], keys[-1]) == (first, last)
    assert keys == study_windows(time_range, NOW)
    assert list(time_partitions(time_range).get_partition_keys()) == study_windows(time_range)


@pytest.mark.parametrize("partitions", ["monthly", "weekly", "daily"])
def test_a_partition_s_window_is_the_one_that_its_rows_are_from(partitions: str) -> None:
    time_range = period(partitions=partitions, **dropping("2024-09-27", "2024-12-02"))
    define = time_partitions(time_range)
    windows = [define.time_window_for_partition_key(key) for key in define.get_partition_keys()]
    assert windows[0].start <= datetime(2024, 9, 27, tzinfo=UTC) < windows[0].end
    assert windows[-1].start <= datetime(2024, 12, 2, 23, 59, tzinfo=UTC) < windows[-1].end
    assert all(one.end == following.start for one, following in pairwise(windows))


def test_one_range_covers_scattered_hosts_in_the_order_of_the_partitions() -> None:
    keys = ["c", "a", "d", "b"]
    assert covering_range(keys, ["b", "a"]) == ("a", "b")
    assert covering_range(keys, ["d"]) == ("d", "d")
    assert covering_range(keys, ["x"]) is None
