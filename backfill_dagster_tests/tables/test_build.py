"""The tables of a study that is written by hand, in parts as small as they get."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from backfill_dagster.errors import StorageError
from backfill_dagster.records.conversion import records_key
from backfill_dagster.records.windows import GRANULARITIES, UNDATED
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables import build, contents, parts
from backfill_dagster.tables.build import WindowedTable, remove_other_tables
from backfill_dagster.tables.contents import TableContents
from backfill_dagster_tests.tables.converted import MONTHLY, SCHEMA, Record, write_pack

MONTHS = ["2024-09", "2024-10", "2024-11"]


def at(year: int, month: int, day: int = 1) -> datetime:
    return datetime(year, month, day, tzinfo=UTC)


FIRST: list[Record] = [
    ("did:plc:b", "2", at(2024, 10), "consistent"),
    ("did:plc:b", "1", at(2024, 11), "consistent"),
    ("did:plc:old", "1", at(2024, 10), "consistent"),
    ("did:plc:b", "3", None, "missing"),
    ("did:plc:b", "4", at(2031, 1), "future"),
]
SECOND: list[Record] = [
    ("did:plc:a", "1", at(2024, 10, 31), "no_rkey_time"),
    ("did:plc:old", "1", at(2024, 11), "consistent"),
]
SHOWN = pl.DataFrame(
    {
        "did": ["did:plc:a", "did:plc:b", "did:plc:old"],
        "pds_host": ["two.test", "one.test", "two.test"],
        "pack": ["p2", "p1", "p2"],
    }
)


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    storage = StudyStorage(tmp_path)
    write_pack(storage, "one.test", "p1", FIRST)
    write_pack(storage, "two.test", "p2", SECOND)
    return storage


def table(storage: StudyStorage, shown: pl.DataFrame = SHOWN, part_bytes: int | None = None) -> WindowedTable:
    return WindowedTable(
        storage, "blocks", MONTHLY, MONTHS, TableContents(storage, shown, ["blocks"], part_bytes)
    )


def uris(storage: StudyStorage, folder: str) -> list[str]:
    return [uri for key in storage.keys(folder) for uri in storage.read(key)["uri"]]


@pytest.mark.parametrize("part_bytes", [1, 10**9])
def test_each_row_stands_once_in_its_window_from_its_snapshot_alone(
    storage: StudyStorage, part_bytes: int
) -> None:
    reports = table(storage, part_bytes=part_bytes).build(MONTHS)
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
    table(storage).build(["2024-10"])
    found = uris(storage, "tables/blocks/month=2024-10")
    assert found == sorted(found)


def test_building_in_fewer_parts_leaves_none_of_before(storage: StudyStorage) -> None:
    shown = pl.DataFrame(
        {"did": [f"did:plc:{n}" for n in range(9)], "pds_host": "h", "pack": [f"q{n}" for n in range(9)]}
    )
    for n in range(9):
        write_pack(storage, "h", f"q{n}", [(f"did:plc:{n}", "1", at(2024, 10), "consistent")])
    table(storage, shown, part_bytes=1).build(MONTHS)
    assert len(storage.keys("tables/blocks/month=2024-10")) > 1
    whole = uris(storage, "tables/blocks/month=2024-10")
    [_, report, _] = table(storage, shown).build(MONTHS)
    assert (report.parts, report.rows, report.rebuilt) == (1, 9, True)
    assert uris(storage, "tables/blocks/month=2024-10") == sorted(whole)
    assert len(whole) == 9


def many_packs(storage: StudyStorage) -> pl.DataFrame:
    """Nine packs of two accounts each; the second account's snapshot is in the pack after it, but for the last."""
    for n in range(9):
        records: list[Record] = [
            (f"did:plc:{m}", "1", at(2024, month, n + 1), "consistent")
            for m in (n, n - 1)
            for month in (10, 11)
        ]
        write_pack(storage, "h", f"q{n}", records)
    rows = {"did": [f"did:plc:{n}" for n in range(9)], "pds_host": "h", "pack": [f"q{n}" for n in range(9)]}
    return pl.DataFrame(rows)


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_files_and_indexes_are_read_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(parts, "FILES_AT_ONCE", at_once)
    monkeypatch.setattr(contents, "_PACKS_AT_ONCE", at_once)
    monkeypatch.chdir(tmp_path)
    storage = StudyStorage(Path("relative"))
    shown = many_packs(storage)
    read: list[int] = []
    collect = StudyStorage.collect

    def watched(self: StudyStorage, frames: list[pl.LazyFrame], keys: list[str]) -> list[pl.DataFrame]:
        read.append(sum(key.startswith("records/") for key in keys))
        return collect(self, frames, keys)

    monkeypatch.setattr(StudyStorage, "collect", watched)
    table(storage, shown).build(MONTHS)
    assert max(read) == min(at_once, 9)
    found = pl.read_parquet("relative/tables/blocks/*/*.parquet").sort("did", "created_at")
    # Of each account only what its own pack says.
    expected = [(f"did:plc:{n}", at(2024, month, n + 1)) for n in range(9) for month in (10, 11)]
    assert found.select("did", "created_at").rows() == expected


def test_parts_are_handed_to_workers_some_at_a_time(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool(Executor):
        """Works when somebody waits for it."""

        waiting = most = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            Pool.waiting += 1
            Pool.most = max(Pool.most, Pool.waiting)

            class Lazy(Future[Any]):
                def result(self, timeout: float | None = None) -> Any:
                    Pool.waiting -= 1
                    return fn(*args, **kwargs)

            return Lazy()

    monkeypatch.setattr(build, "_SMALL_BYTES", 0)
    monkeypatch.setattr(build, "_PARTS_AHEAD", 2)
    reports = table(storage, many_packs(storage), part_bytes=1).build(MONTHS, workers=Pool)
    assert [report.rows for report in reports] == [0, 9, 9]
    assert reports[1].parts > 2
    assert Pool.most == 2


def test_dates_that_cannot_be_believed_stand_apart(storage: StudyStorage) -> None:
    [report] = table(storage).build([UNDATED])
    assert report.rows == 2
    assert uris(storage, "undated/blocks") == ["at://did:plc:b/c/3", "at://did:plc:b/c/4"]
    assert storage.folders("tables") == []


def test_a_single_window_leaves_the_others_alone(storage: StudyStorage) -> None:
    table(storage).build(MONTHS)
    before = storage.path("tables/blocks/month=2024-11/part-00000.parquet").stat().st_mtime_ns
    table(storage).build(["2024-10"], again=True)
    assert storage.path("tables/blocks/month=2024-11/part-00000.parquet").stat().st_mtime_ns == before


def test_windows_and_tables_that_the_study_no_longer_has_go(storage: StudyStorage) -> None:
    table(storage).build([*MONTHS, UNDATED])
    later = WindowedTable(storage, "blocks", MONTHLY, ["2024-11"], TableContents(storage, SHOWN, ["blocks"]))
    assert [report.rebuilt for report in later.build(["2024-11"])] == [False]
    remove_other_tables(storage, ["blocks"])
    assert storage.folders("tables/blocks") == ["month=2024-11"]
    assert storage.folders("undated") == ["blocks"]
    assert table(storage).stale([*MONTHS, UNDATED]) == ["2024-10"]
    remove_other_tables(storage, ["posts"])
    assert storage.folders("tables") == []
    assert storage.folders("undated") == []
    assert storage.keys("built") == []


def test_a_table_without_any_record_can_still_be_read_by_its_glob(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    reports = table(storage, SHOWN.clear()).build([*MONTHS, UNDATED])
    assert [(report.rows, report.parts) for report in reports] == [(0, 1), (0, 0), (0, 0), (0, 1)]
    for pattern in ("tables/blocks/*/*.parquet", "undated/blocks/*.parquet"):
        frame = pl.read_parquet(tmp_path / pattern)
        assert frame.height == 0
        assert set(SCHEMA) <= set(frame.columns)
    # The file that stands in for rows goes when there are some.
    write_pack(storage, "one.test", "p1", FIRST)
    write_pack(storage, "two.test", "p2", SECOND)
    table(storage).build(MONTHS)
    remove_other_tables(storage, ["blocks"])
    assert storage.folders("tables/blocks") == ["month=2024-10", "month=2024-11"]


@pytest.mark.parametrize(
    ("partitions", "folders"),
    [
        ("weekly", ["week=2024-09-30", "week=2024-10-28"]),
        ("daily", ["day=2024-10-01", "day=2024-10-31", "day=2024-11-01"]),
    ],
)
def test_weeks_and_days_are_folders_that_duckdb_and_polars_read(
    tmp_path: Path, partitions: str, folders: list[str]
) -> None:
    storage, granularity = StudyStorage(tmp_path), GRANULARITIES[partitions]
    write_pack(storage, "one.test", "p1", FIRST, granularity=granularity)
    write_pack(storage, "two.test", "p2", SECOND, granularity=granularity)
    windows = [folder.partition("=")[2] for folder in folders]
    contents = TableContents(storage, SHOWN, ["blocks"])
    WindowedTable(storage, "blocks", granularity, windows, contents).build(windows)
    assert storage.folders("tables/blocks") == folders
    pattern, word = f"{tmp_path}/tables/blocks/*/*.parquet", granularity.word
    frame = pl.read_parquet(pattern, hive_partitioning=True)
    assert set(frame[word].dt.to_string("%Y-%m-%d")) == set(windows)
    assert (frame[word] == frame["created_at"].dt.truncate(granularity.every).dt.date()).all()
    query = f"SELECT {word}, count(*) FROM '{pattern}' GROUP BY 1 ORDER BY 1"
    counted = duckdb.connect().execute(query).fetchall()
    assert [str(key) for key, _ in counted] == windows
    assert sum(number for _, number in counted) == 4


def test_contents_tell_of_no_table_that_they_were_not_read_for(storage: StudyStorage) -> None:
    contents = TableContents(storage, SHOWN, ["blocks"])
    assert contents.of("blocks")
    with pytest.raises(KeyError, match="posts"):
        contents.of("posts")


def test_records_that_were_converted_and_are_gone_are_missed(storage: StudyStorage) -> None:
    storage.remove(records_key("two.test", "blocks", "p2", 0))
    with pytest.raises(
        StorageError, match="of the 2 records converted for tables/blocks/month=2024-10, 1 are"
    ):
        table(storage).build(MONTHS)
    assert table(storage).stale(MONTHS) == MONTHS


def test_building_one_window_reads_only_the_files_that_have_rows_in_it(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = pl.concat([SHOWN, pl.DataFrame({"did": ["did:plc:c"], "pds_host": ["h"], "pack": ["p3"]})])
    write_pack(
        storage,
        "h",
        "p3",
        [("did:plc:c", "1", at(2024, 9), "consistent")],
        [("did:plc:c", "2", at(2024, 10), "consistent")],
    )
    read: list[str] = []
    collect = StudyStorage.collect

    def watched(self: StudyStorage, frames: list[pl.LazyFrame], keys: list[str]) -> list[pl.DataFrame]:
        read.extend(key for key in keys if "/blocks/" in key)
        return collect(self, frames, keys)

    monkeypatch.setattr(StudyStorage, "collect", watched)
    table(storage, shown).build(["2024-09"])
    assert read == [records_key("h", "blocks", "p3", 0)]
