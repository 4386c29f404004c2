"""What is on disk after a conversion, against what the same records become in memory."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from backfill_dagster.records import conversion, file_batches
from backfill_dagster.records.conversion import (
    ConversionReport,
    PackFiles,
    convert_pack,
    converted_packs,
    read_counts,
    records_key,
)
from backfill_dagster.records.settings import RecordSettings
from backfill_dagster.records.tables import COLLECTIONS, FOLLOW, LIKE, POST, TABLES
from backfill_dagster.records.transform import transform_records
from backfill_dagster.records.window_index import index_key
from backfill_dagster.records.windows import GRANULARITIES
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.records.batches import (
    CREATED,
    DID,
    FETCHED_AT,
    OTHER_DID,
    PDS,
    REV,
    accounts,
    block_row,
    blocks,
    cbor,
    settings,
)

# On both sides of the collections that have tables of their own.
OTHERS = ["aaa.example.note", "com.example.note"]
HOST = "pds.example.com"
PACK = "0123456789abcdef0123"


def stored_rows() -> list[dict[str, Any]]:
    """Records of two accounts: mostly posts, some likes, and names of collections that are none."""
    rng = random.Random(8)
    rows = []
    for number in range(60):
        collection = rng.choice([POST] * 4 + [LIKE, *OTHERS, "no collection"])
        value = {"$type": collection, "createdAt": CREATED, "text": f"number {number}"}
        rows.append(block_row(cbor(value), collection, f"k{number:02}", rng.choice([DID, OTHER_DID])))
    rows.append(block_row(b"\xff", FOLLOW, "k61"))
    return sorted(rows, key=lambda row: (row["collection"], row["did"], row["rkey"]))


def store(root: Path, rows: list[dict[str, Any]]) -> PackFiles:
    storage = StudyStorage(root)
    key = f"repos/pds={HOST}/{PACK}"
    written = storage.write(f"{key}.blocks-0.parquet", pl.DataFrame(blocks(rows)))
    pack = accounts(DID, OTHER_DID).with_columns(outcome=pl.lit("complete"), purged=pl.Series([0, 3]))
    columns = [
        pl.col(name).cast(kind) if name in pack.columns else pl.lit(None, kind).alias(name)
        for name, kind in PACK_SCHEMA.items()
    ]
    storage.write(f"{key}.parquet", pack.select(columns))
    return PackFiles(HOST, PACK, f"{key}.parquet", ((written.key, written.sha256),))


def convert(root: Path, pack: PackFiles, wanted: RecordSettings) -> ConversionReport:
    return convert_pack(root, pack, wanted, {}, GRANULARITIES["monthly"], "fingerprint")


@pytest.mark.parametrize("types", [COLLECTIONS, [POST], [LIKE], [FOLLOW], [POST, LIKE]])
def test_files_hold_what_the_same_records_become_in_memory(tmp_path: Path, types: list[str]) -> None:
    rows = stored_rows()
    pack = store(tmp_path, rows)
    wanted = settings(record_types=types)
    report = convert(tmp_path, pack, wanted)
    storage = StudyStorage(tmp_path)
    expected = transform_records(blocks(rows), accounts(DID, OTHER_DID), wanted)

    for kind, frame in {**expected.tables, "rejects": expected.rejects}.items():
        key = records_key(HOST, kind, PACK, 0)
        assert storage.exists(key) == (frame.height > 0)
        assert frame.is_empty() or storage.read(key).equals(frame)
    counts = read_counts(storage, [(HOST, PACK)]).drop("pack")
    purged = counts.filter(pl.col("reason") == "purged")
    assert purged.select("did", "records").rows() == [(OTHER_DID, 3)]
    assert counts.join(purged, on=counts.columns, how="anti", nulls_equal=True).equals(expected.counts)
    assert sum(number for *_, number in report.counts) == len(rows) + 3
    index = storage.read(index_key(HOST, PACK))
    assert dict(index.group_by("table").agg(pl.col("rows").sum()).iter_rows()) == {
        table: expected.tables[table].height for table in TABLES if expected.tables[table].height
    }
    assert converted_packs(storage, [(HOST, PACK)], "fingerprint")
    assert not converted_packs(storage, [(HOST, PACK)], "another")


@pytest.mark.parametrize("others", [[], OTHERS])
@pytest.mark.parametrize("types", [COLLECTIONS, [POST, FOLLOW]])
@pytest.mark.parametrize("records", [1, 30])
def test_a_large_file_is_converted_in_batches_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: list[str], others: list[str], records: int
) -> None:
    rows, wanted = stored_rows(), settings(record_types=types, other_types=others)
    roots = tmp_path / "whole", tmp_path / "batches"
    reports = [convert(roots[0], store(roots[0], rows), wanted)]
    monkeypatch.setattr(file_batches, "BATCH_RECORDS", records)
    pack = store(roots[1], rows)
    batches = file_batches.file_batches(StudyStorage(roots[1]), pack.blocks[0][0], wanted)
    assert len(batches) > 1
    assert sum(number for batch in batches for *_, number in batch.unread) == sum(
        row["collection"] not in (*types, *others, "no collection") for row in rows
    )
    reports.append(convert(roots[1], pack, wanted))

    assert reports[0] == reports[1]
    whole, parted = (
        {
            path.relative_to(root).as_posix(): pl.read_parquet(path)
            for path in (root / "records").rglob("*.parquet")
        }
        for root in roots
    )
    assert whole.keys() == parted.keys()
    for key, frame in whole.items():
        # Not the size of the files, which may be cut differently.
        assert frame.drop("bytes", strict=False).equals(parted[key].drop("bytes", strict=False)), key
    assert converted_packs(StudyStorage(roots[1]), [(HOST, PACK)], "fingerprint")


def test_a_converted_file_is_read_in_small_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a reader of one time window does not hold all of a large repository."""
    monkeypatch.setattr(conversion, "ROWS_IN_GROUP", 4)
    convert(tmp_path, store(tmp_path, stored_rows()), settings())
    metadata = pq.read_metadata(StudyStorage(tmp_path).path(records_key(HOST, "posts", PACK, 0)))
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert len(groups) > 3
    assert max(groups) == 4


def test_another_conversion_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    pack = store(tmp_path, stored_rows())
    convert(tmp_path, pack, settings())
    convert(tmp_path, pack, settings(record_types=[LIKE]))
    storage = StudyStorage(tmp_path)
    stored = [table for table in TABLES if storage.exists(records_key(HOST, table, PACK, 0))]
    assert stored == ["likes"]
    assert storage.read(index_key(HOST, PACK))["table"].unique().to_list() == ["likes"]


def test_a_pack_without_records_is_converted_to_nothing(tmp_path: Path) -> None:
    pack = store(tmp_path, [])
    report = convert(tmp_path, pack, settings())
    storage = StudyStorage(tmp_path)
    assert [number for *_, number in report.counts] == [3]
    assert storage.read(index_key(HOST, PACK)).is_empty()
    assert not any(storage.exists(records_key(HOST, kind, PACK, 0)) for kind in (*TABLES, "rejects"))


def test_the_accounts_columns_come_from_the_pack(tmp_path: Path) -> None:
    convert(tmp_path, store(tmp_path, stored_rows()), settings())
    posts = StudyStorage(tmp_path).read(records_key(HOST, "posts", PACK, 0))
    assert posts.select("pds", "repo_rev").unique().rows() == [(PDS, REV)]
    assert posts["created_at"].max() < FETCHED_AT  # type: ignore[operator]
