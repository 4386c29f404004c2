from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from backfill_dagster.records.date_quality import (
    NETWORK_START,
    UNDATED_QUALITIES,
    DateQuality,
    date_quality,
    is_undated,
)

FETCHED_AT = datetime(2025, 6, 1, tzinfo=UTC)
KEY_TIME = datetime(2024, 10, 5, 12, tzinfo=UTC)
DAY = timedelta(hours=24)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("created_at", "is_written", "rkey_time", "quality"),
    [
        (KEY_TIME, True, KEY_TIME, DateQuality.CONSISTENT),
        (KEY_TIME - DAY, True, KEY_TIME, DateQuality.CONSISTENT),
        (KEY_TIME + DAY, True, KEY_TIME, DateQuality.CONSISTENT),
        (KEY_TIME - DAY - TICK, True, KEY_TIME, DateQuality.DIFFERS_FROM_RKEY),
        (KEY_TIME + DAY + TICK, True, KEY_TIME, DateQuality.DIFFERS_FROM_RKEY),
        (KEY_TIME, True, None, DateQuality.NO_RKEY_TIME),
        (None, False, KEY_TIME, DateQuality.MISSING),
        (None, True, KEY_TIME, DateQuality.UNPARSEABLE),
        (NETWORK_START - TICK, True, NETWORK_START, DateQuality.BEFORE_NETWORK),
        (NETWORK_START, True, NETWORK_START, DateQuality.CONSISTENT),
        (FETCHED_AT, True, FETCHED_AT, DateQuality.CONSISTENT),
        (FETCHED_AT + TICK, True, FETCHED_AT, DateQuality.FUTURE),
    ],
)
def test_each_judgement(
    created_at: datetime | None, is_written: bool, rkey_time: datetime | None, quality: DateQuality
) -> None:
    instant = pl.Datetime("us", "UTC")
    frame = pl.DataFrame(
        {"created_at": [created_at], "written": [is_written], "key": [rkey_time], "fetched": [FETCHED_AT]},
        schema={"created_at": instant, "written": pl.Boolean, "key": instant, "fetched": instant},
    )
    judged = frame.select(
        quality=date_quality(pl.col("created_at"), pl.col("written"), pl.col("key"), pl.col("fetched"))
    )
    assert judged.item() == quality
    assert judged.select(is_undated(pl.col("quality"))).item() == (quality in UNDATED_QUALITIES)
