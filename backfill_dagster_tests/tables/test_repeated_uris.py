from pathlib import Path

import numpy as np
import polars as pl
import pytest

from backfill_dagster.errors import StorageError
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables import repeated_uris
from backfill_dagster.tables.repeated_uris import count_repeated_uris

TABLE = "likes"
SCHEMA = TABLE_BY_NAME[TABLE].schema
PARTS = (
    "tables/likes/month=2024-10/part-00000.parquet",
    "tables/likes/month=2024-10/part-00001.parquet",
    "tables/likes/month=2024-11/part-00000.parquet",
    "undated/likes/part-00000.parquet",
)
ROWS = 500


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return StudyStorage(tmp_path / "study")


@pytest.fixture(params=[1, 7], ids=["one heap", "many heaps"])
def heaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Have a table of 2,000 rows and a few more dealt out to so many heaps."""
    number: int = request.param
    monkeypatch.setattr(repeated_uris, "HEAP_ROWS", (ROWS * len(PARTS) + 10) // number)
    return number


def uri(part: int, row: int) -> str:
    return f"at://did:plc:{row % 13}/app.bsky.feed.like/{part}-{row}"


def write_table(storage: StudyStorage, *planted: tuple[int, str]) -> None:
    """Store four files of different URIs, and in some of them another row."""
    for part, key in enumerate(PARTS):
        uris = [uri(part, row) for row in range(ROWS)] + [text for place, text in planted if place == part]
        rows = pl.concat([SCHEMA.to_frame(), pl.DataFrame({"uri": uris})], how="diagonal")
        storage.write(key, rows.sort("uri"))


def test_none(storage: StudyStorage, heaps: int) -> None:
    assert count_repeated_uris(storage, TABLE) == 0
    write_table(storage)
    assert count_repeated_uris(storage, TABLE) == 0
    assert storage.folders(".scratch") == []


@pytest.mark.parametrize("place", range(len(PARTS)))
def test_within_a_file_across_parts_across_windows_and_among_the_undated(
    storage: StudyStorage, heaps: int, place: int
) -> None:
    for row in range(0, ROWS, 50):
        write_table(storage, (place, uri(0, row)))
        assert count_repeated_uris(storage, TABLE) == 2


def test_each_row_counts_once(storage: StudyStorage, heaps: int) -> None:
    write_table(storage, (0, uri(0, 3)), (1, uri(0, 3)), (3, uri(2, 8)), (3, uri(1, 9)))
    assert count_repeated_uris(storage, TABLE) == 3 + 2 + 2


def test_texts_of_the_same_hash_are_told_apart(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_to_few() -> pl.Expr:
        return pl.col("uri").hash() // 2**60

    monkeypatch.setattr(repeated_uris, "_hash", hash_to_few)
    write_table(storage)
    assert count_repeated_uris(storage, TABLE) == 0
    write_table(storage, (1, uri(0, 3)))
    assert count_repeated_uris(storage, TABLE) == 2


def test_heaps_are_of_about_the_size_asked_for(
    storage: StudyStorage, heaps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def noting(
        hashes: np.ndarray[tuple[int], np.dtype[np.uint64]],
    ) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        sizes.append(len(hashes))
        return hashes[:0]

    monkeypatch.setattr(repeated_uris, "_repeated", noting)
    write_table(storage)
    count_repeated_uris(storage, TABLE)
    assert len(sizes) == heaps
    assert sum(sizes) == ROWS * len(PARTS)
    assert max(sizes) < 1.5 * ROWS * len(PARTS) / heaps


def test_a_damaged_file_is_named(storage: StudyStorage) -> None:
    write_table(storage)
    path = storage.path(PARTS[1])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match="month=2024-10/part-00001"):
        count_repeated_uris(storage, TABLE)
