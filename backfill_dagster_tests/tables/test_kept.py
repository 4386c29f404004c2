from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.records.date_quality import DateQuality
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables import kept
from backfill_dagster.tables.kept import KEPT_SCHEMA, add_kept, count_kept

SEPTEMBER, OCTOBER, NOVEMBER = (datetime(2024, month, 5, tzinfo=UTC) for month in (9, 10, 11))
FUTURE = datetime(2090, 1, 1, tzinfo=UTC)
SOUND, WRONG = DateQuality.CONSISTENT.value, DateQuality.FUTURE.value


def rows(table: str, *values: tuple[str, datetime | None, str, list[str]]) -> pl.DataFrame:
    schema = TABLE_BY_NAME[table].schema
    names = ("did", "created_at", "date_quality", "issues")
    frame = pl.DataFrame(values, schema={name: schema[name] for name in names}, orient="row")
    return pl.concat([schema.to_frame(), frame], how="diagonal")


@pytest.mark.parametrize("at_once", [0, 3, 100])
def test_counts_of_all_files_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(kept, "_COUNTS_AT_ONCE", at_once)
    storage = StudyStorage(tmp_path)
    storage.write(
        "tables/likes/month=2024-10/part-00000.parquet",
        rows("likes", ("a", OCTOBER, SOUND, []), ("a", OCTOBER, SOUND, ["langs"]), ("b", OCTOBER, SOUND, [])),
    )
    storage.write(
        "tables/likes/month=2024-11/part-00001.parquet",
        rows("likes", ("a", NOVEMBER, SOUND, ["langs", "via"]), ("c", NOVEMBER, SOUND, [])),
    )
    storage.write(
        "undated/likes/part-00000.parquet",
        rows("likes", ("a", FUTURE, WRONG, []), ("d", FUTURE, WRONG, []), ("d", None, "missing", [])),
    )
    storage.write(
        "tables/follows/month=2024-10/part-00000.parquet", rows("follows", ("a", SEPTEMBER, SOUND, []))
    )
    likes = count_kept(storage, "likes")
    assert likes.schema == KEPT_SCHEMA
    assert told(likes) == {
        "a": (4, 0, 1, 2, OCTOBER, NOVEMBER),
        "b": (1, 0, 0, 0, OCTOBER, OCTOBER),
        "c": (1, 0, 0, 0, NOVEMBER, NOVEMBER),
        "d": (2, 0, 2, 0, None, None),
    }
    whole = add_kept([likes, count_kept(storage, "follows"), count_kept(storage, "blocks")])
    assert whole.schema == KEPT_SCHEMA
    assert told(whole) == told(likes) | {"a": (4, 1, 1, 2, SEPTEMBER, NOVEMBER)}


def told(kept: pl.DataFrame) -> dict[str, tuple[object, ...]]:
    rows = kept.select("did", "likes", "follows", "undated", "with_issues", "first", "last").rows()
    assert kept.select("posts", "replies", "reposts", "blocks").sum().row(0) == (0, 0, 0, 0)
    assert kept["did"].is_unique().all()
    return {did: tuple(rest) for did, *rest in rows}
