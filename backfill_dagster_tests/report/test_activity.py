"""What is counted window by window and file by file equals what counting all rows at once gives."""

import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.records.windows import GRANULARITIES
from backfill_dagster.report.activity import Activity, read_activity
from backfill_dagster.report.days import DaySpan
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.report.stored import did_of, record

START = datetime(2024, 9, 27, tzinfo=UTC)
SPAN = DaySpan(date(2024, 9, 27), date(2024, 12, 1))
TABLES = ("posts", "likes")


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    chance = random.Random(4)
    seconds = SPAN.length * 86_400
    return pl.DataFrame(
        [
            {
                **record(
                    chance.randrange(40) ** 2 % 57, START + timedelta(seconds=chance.randrange(seconds))
                ),
                "table": chance.choice(TABLES),
                "part": chance.randrange(3),
            }
            for _ in range(900)
        ]
    ).with_columns(pl.col("created_at").cast(pl.Datetime("us", "UTC")))


@pytest.fixture(scope="module", params=sorted(GRANULARITIES))
def activity(
    rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Activity:
    """Read rows of which one account's can lie in several files, and others outside the period beside them."""
    storage = StudyStorage(tmp_path_factory.mktemp("activity"))
    granularity = GRANULARITIES[request.param]
    windows = rows.with_columns(
        window=pl.col("created_at").dt.truncate(granularity.every).dt.strftime(granularity.key_format)
    )
    kinds = windows.partition_by("table", "window", "part", as_dict=True, include_key=False)
    for (table, window, part), frame in kinds.items():
        schema = TABLE_BY_NAME[str(table)].schema
        outside = frame.head(1).with_columns(in_range=pl.lit(value=False))
        stored = pl.concat([schema.to_frame(), frame, outside], how="diagonal")
        storage.write(f"tables/{table}/{granularity.folder(str(window))}/part-{part:05d}.parquet", stored)
    return read_activity(storage, TABLES, granularity, SPAN, rows["did"].unique())


def test_days(rows: pl.DataFrame, activity: Activity) -> None:
    expected = rows.group_by("table", pl.col("created_at").dt.date().alias("day")).agg(
        records=pl.len().cast(pl.Int64)
    )
    assert activity.by_day.equals(expected.sort("table", "day"))
    assert activity.records_of("likes") == rows["table"].eq("likes").sum()


def test_weeks_that_span_windows_count_an_account_once(rows: pl.DataFrame, activity: Activity) -> None:
    expected = _by_week(rows).group_by("week").agg(pl.col("did").n_unique())
    assert dict(activity.by_week.iter_rows()) == dict(expected.iter_rows())
    assert SPAN.week_start(4) == date(2024, 10, 25), "a week of two months is among them"


def test_spans_of_accounts(rows: pl.DataFrame, activity: Activity) -> None:
    expected = (
        _by_week(rows)
        .group_by("did")
        .agg(
            first=pl.col("created_at").min(),
            last=pl.col("created_at").max(),
            weeks=pl.col("week").n_unique().cast(pl.Int64),
        )
        .drop("did")
        .sort(pl.all())
    )
    assert activity.spans.equals(expected)
    assert "did" not in activity.spans.columns


def _by_week(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(week=(pl.col("created_at") - START).dt.total_days() // 7)


def test_nothing_is_read_of_no_days(tmp_path: Path) -> None:
    activity = read_activity(
        StudyStorage(tmp_path), TABLES, GRANULARITIES["monthly"], None, pl.Series("did", [did_of(1)])
    )
    assert activity.by_day.is_empty()
    assert activity.spans.columns == ["first", "last", "weeks"]
    assert activity.by_week.is_empty()
