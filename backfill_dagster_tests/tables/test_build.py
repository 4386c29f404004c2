"""The tables of a study that is written by hand, in chunks as small as they get."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.records.conversion import records_key
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.build import build_months, build_undated, remove_other_months

SCHEMA = TABLE_BY_NAME["blocks"].schema


def rows(*records: tuple[str, str, datetime | None, str]) -> pl.DataFrame:
    frame = pl.DataFrame(
        [
            {
                "did": did,
                "uri": f"at://{did}/c/{rkey}",
                "rkey": rkey,
                "created_at": at,
                "date_quality": quality,
            }
            for did, rkey, at, quality in records
        ],
        schema={name: SCHEMA[name] for name in ("did", "uri", "rkey", "created_at", "date_quality")},
    )
    return pl.concat([SCHEMA.to_frame(), frame], how="diagonal").select(SCHEMA.names())


def at(year: int, month: int, day: int = 1) -> datetime:
    return datetime(year, month, day, tzinfo=UTC)


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    storage = StudyStorage(tmp_path)
    first = rows(
        ("did:plc:b", "2", at(2024, 10), "consistent"),
        ("did:plc:b", "1", at(2024, 11), "consistent"),
        ("did:plc:old", "1", at(2024, 10), "consistent"),
        ("did:plc:b", "3", None, "missing"),
        ("did:plc:b", "4", at(2031, 1), "future"),
    )
    second = rows(
        ("did:plc:a", "1", at(2024, 10, 31), "no_rkey_time"), ("did:plc:old", "1", at(2024, 11), "consistent")
    )
    storage.write(records_key("one.test", "blocks", "p1", 0), first)
    storage.write(records_key("two.test", "blocks", "p2", 0), second)
    return storage


SHOWN = pl.DataFrame(
    {
        "did": ["did:plc:a", "did:plc:b", "did:plc:old"],
        "pds_host": ["two.test", "one.test", "two.test"],
        "pack": ["p2", "p1", "p2"],
    }
)


def uris(storage: StudyStorage, folder: str) -> list[str]:
    return [uri for key in storage.keys(folder) for uri in storage.read(key)["uri"]]


@pytest.mark.parametrize("chunk_bytes", [1, 10**9])
def test_each_row_stands_once_in_its_month_from_its_snapshot_alone(
    storage: StudyStorage, chunk_bytes: int
) -> None:
    reports = build_months(storage, "blocks", ["2024-09", "2024-10", "2024-11"], SHOWN, chunk_bytes)
    assert [report.rows for report in reports] == [0, 2, 2]
    assert uris(storage, "tables/blocks/month=2024-09") == []
    assert sorted(uris(storage, "tables/blocks/month=2024-10")) == [
        "at://did:plc:a/c/1",
        "at://did:plc:b/c/2",
    ]
    assert sorted(uris(storage, "tables/blocks/month=2024-11")) == [
        "at://did:plc:b/c/1",
        "at://did:plc:old/c/1",
    ]


def test_a_part_is_sorted_by_uri(storage: StudyStorage) -> None:
    build_months(storage, "blocks", ["2024-10"], SHOWN)
    found = uris(storage, "tables/blocks/month=2024-10")
    assert found == sorted(found)


def test_building_again_leaves_no_part_of_before(storage: StudyStorage) -> None:
    build_months(storage, "blocks", ["2024-10"], SHOWN, chunk_bytes=1)
    assert len(storage.keys("tables/blocks/month=2024-10")) == 2
    build_months(storage, "blocks", ["2024-10"], SHOWN)
    assert len(storage.keys("tables/blocks/month=2024-10")) == 1


def test_dates_that_cannot_be_believed_stand_apart(storage: StudyStorage) -> None:
    report = build_undated(storage, "blocks", SHOWN)
    assert report.rows == 2
    assert uris(storage, "undated/blocks") == ["at://did:plc:b/c/3", "at://did:plc:b/c/4"]


def test_a_single_month_leaves_the_others_alone(storage: StudyStorage) -> None:
    build_months(storage, "blocks", ["2024-10", "2024-11"], SHOWN)
    before = storage.path("tables/blocks/month=2024-11/part-00000.parquet").stat().st_mtime_ns
    build_months(storage, "blocks", ["2024-10"], SHOWN)
    assert storage.path("tables/blocks/month=2024-11/part-00000.parquet").stat().st_mtime_ns == before


def test_months_and_tables_that_the_study_no_longer_has_go(storage: StudyStorage) -> None:
    build_months(storage, "blocks", ["2024-10", "2024-11"], SHOWN)
    build_undated(storage, "blocks", SHOWN)
    remove_other_months(storage, ["2024-11"], ["blocks"])
    assert storage.folders("tables/blocks") == ["month=2024-11"]
    assert storage.folders("undated") == ["blocks"]
    remove_other_months(storage, ["2024-11"], ["posts"])
    assert storage.folders("tables") == []
    assert storage.folders("undated") == []


def test_a_table_without_any_record_can_still_be_read_by_its_glob(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    build_months(storage, "blocks", ["2024-10"], SHOWN.clear())
    frame = pl.read_parquet(tmp_path / "tables/blocks/month=*/*.parquet")
    assert frame.height == 0
    assert set(SCHEMA) <= set(frame.columns)
