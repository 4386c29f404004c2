"""Time windows: that their keys, folders and bounds agree with each other and with where rows are put."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.records.window_index import INDEX_SCHEMA, index_files
from backfill_dagster.records.windows import GRANULARITIES, UNDATED

instants = st.datetimes(datetime(2022, 11, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
partitions = st.sampled_from(sorted(GRANULARITIES))


@given(partitions, instants)
def test_a_window_holds_its_instant_and_is_found_again_by_its_key(partitions: str, instant: datetime) -> None:
    granularity = GRANULARITIES[partitions]
    start, end = granularity.floor(instant), granularity.after(instant)
    assert start <= instant < end
    assert granularity.start(granularity.key(start)) == start
    assert granularity.floor(end) == end
    assert granularity.after(end - timedelta(microseconds=1)) == end


@pytest.mark.parametrize(
    ("partitions", "folder", "start"),
    [
        ("monthly", "month=2024-12", datetime(2024, 12, 1, tzinfo=UTC)),
        ("weekly", "week=2024-12-30", datetime(2024, 12, 30, tzinfo=UTC)),
        ("daily", "day=2024-12-31", datetime(2024, 12, 31, tzinfo=UTC)),
    ],
)
def test_folders_are_named_by_the_first_day(partitions: str, folder: str, start: datetime) -> None:
    granularity = GRANULARITIES[partitions]
    # A Tuesday, in the first ISO week of 2025.
    assert granularity.floor(datetime(2024, 12, 31, 23, 59, tzinfo=UTC)) == start
    assert granularity.folder(granularity.key(start)) == folder


def test_an_index_counts_rows_by_account_and_window() -> None:
    rows = pl.DataFrame(
        {
            "did": ["b", "a", "a", "a", "a"],
            "created_at": [datetime(2024, 10, day, tzinfo=UTC) for day in (6, 6, 7, 13, 1)],
            "date_quality": ["consistent", "consistent", "no_rkey_time", "differs_from_rkey", "future"],
        }
    )
    told = {"pack": "p", "number": 3, "granularity": GRANULARITIES["weekly"]}

    def index_of(
        rows: pl.DataFrame, table: str = "likes", fingerprint: str = "one", **change: Any
    ) -> pl.DataFrame:
        return index_files({table: (rows, 10)}, fingerprint=fingerprint, **{**told, **change})

    index = index_of(rows)
    assert index.schema == INDEX_SCHEMA
    assert index.select("did", "window", "rows").rows() == [
        ("a", "2024-09-30", 1),
        ("a", "2024-10-07", 2),
        ("a", UNDATED, 1),
        ("b", "2024-09-30", 1),
    ]
    # One number per account, which is another one for another file, table or setting.
    contents = dict(index.select("did", "content").iter_rows())
    assert len(set(contents.values())) == 2
    changes: tuple[dict[str, Any], ...] = (
        {"pack": "q"},
        {"number": 4},
        {"table": "posts"},
        {"fingerprint": "two"},
    )
    for change in changes:
        assert set(index_of(rows, **change)["content"]).isdisjoint(contents.values())
    assert index_of(rows.reverse()).equals(index)


def test_an_index_of_several_files_is_that_of_each() -> None:
    rows = pl.DataFrame(
        {
            "did": ["b", "a"],
            "created_at": [datetime(2024, 10, 6, tzinfo=UTC)] * 2,
            "date_quality": ["consistent"] * 2,
        }
    )
    told: dict[str, Any] = {
        "pack": "p",
        "number": 0,
        "fingerprint": "f",
        "granularity": GRANULARITIES["monthly"],
    }
    files = {"posts": (rows, 7), "likes": (rows.head(1), 9)}
    singly = [index_files({table: file}, **told) for table, file in files.items()]
    assert index_files(files, **told).equals(pl.concat(singly))
    assert index_files(files, **told)["bytes"].to_list() == [7, 7, 9]
    assert index_files({}, **told).equals(pl.DataFrame(schema=INDEX_SCHEMA))
