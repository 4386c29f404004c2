from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backfill_dagster.repos import blocks_file, packs
from backfill_dagster.repos.blocks_file import Records
from backfill_dagster.repos.outcomes import FailureReason, Outcome
from backfill_dagster.repos.packs import Attempt, PackWriter, pack_keys, read_ledger, sweep_uncommitted_blocks
from backfill_dagster.storage import StudyStorage, partition_folder

HOST = "pds.test:8080"
WHEN = datetime(2026, 5, 1, tzinfo=UTC)
COMPLETE = Attempt("did:plc:a", "http://pds.test:8080", Outcome.COMPLETE, WHEN, repo_rev="r", records=3)


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return StudyStorage(tmp_path)


def records(did: str, collections: list[str], rkeys: list[str], blocks: list[bytes]) -> Records:
    texts = pa.array(collections, pa.large_string()), pa.array(rkeys, pa.large_string())
    return Records(did, *texts, np.full((len(blocks), 36), 99, np.uint8), blocks)


def write(storage: StudyStorage, attempts: list[Attempt], blocks: list[bytes]) -> str | None:
    with storage.scratch() as scratch:
        writer = PackWriter(storage, HOST, scratch)
        for attempt in attempts:
            writer.add_attempt(attempt)
            if attempt.outcome is Outcome.COMPLETE:
                count = len(blocks)
                rkeys = [f"{n:05d}" for n in range(count)]
                writer.add_records(records(attempt.did, ["b", "a"] * (count // 2), rkeys, blocks))
        return writer.commit()


def test_a_pack_holds_every_record_sorted_by_collection_and_names_its_files(storage: StudyStorage) -> None:
    pack = write(storage, [COMPLETE], [b"one", b"two", b"three", b"four"])
    [(host, name, key)] = pack_keys(storage)
    assert (host, name) == (HOST, pack)
    [row] = storage.read(key).iter_rows(named=True)
    [file] = row["blocks_files"]
    blocks = storage.read(f"{key.rpartition('/')[0]}/{file['name']}")
    assert blocks["collection"].to_list() == ["a", "a", "b", "b"]
    assert blocks["block"].to_list() == [b"two", b"four", b"one", b"three"]
    assert file["rows"] == 4
    assert file["bytes"] == storage.size(f"{key.rpartition('/')[0]}/{file['name']}")


def test_failures_alone_make_a_pack_without_blocks(storage: StudyStorage) -> None:
    write(storage, [replace(COMPLETE, outcome=Outcome.FAILED, reason=FailureReason.TRUNCATED)], [])
    [row] = read_ledger(storage).iter_rows(named=True)
    assert (row["outcome"], row["reason"], row["pds_host"]) == ("failed", "truncated", HOST)
    assert storage.keys("repos", "*.blocks-*.parquet") == []


def test_nothing_makes_no_pack(storage: StudyStorage) -> None:
    assert write(storage, [], []) is None
    assert pack_keys(storage) == []
    assert read_ledger(storage).is_empty()


def test_the_same_content_has_the_same_name(storage: StudyStorage) -> None:
    first = write(storage, [COMPLETE], [b"x", b"y"])
    assert write(storage, [COMPLETE], [b"x", b"y"]) == first
    assert write(storage, [replace(COMPLETE, commit_cid="other")], [b"x", b"y"]) != first


def test_files_and_row_groups_are_cut_by_bytes(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_file, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(packs, "BLOCKS_FILE_BYTES", 5000)
    with storage.scratch() as scratch:
        writer = PackWriter(storage, HOST, scratch)
        for start in range(0, 200, 20):
            rkeys = [f"{n:05d}" for n in range(start, start + 20)]
            writer.add_records(records("did:plc:a", ["c"] * 20, rkeys, [b"x" * 100] * 20))
        writer.add_attempt(COMPLETE)
        writer.commit()
    files = storage.keys("repos", "*.blocks-*.parquet")
    assert len(files) == 4
    rows = pl.concat([storage.read(key) for key in files])
    assert sorted(rows["rkey"]) == [f"{n:05d}" for n in range(200)]
    for key in files:
        metadata = pq.read_metadata(storage.path(key))
        groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        assert max(groups) <= 10


def test_a_file_has_so_many_rows_at_most_and_only_a_large_account_is_in_several(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "BLOCKS_FILE_ROWS", 20)
    rows_of = {**{f"did:plc:{n:02d}": 3 for n in range(30)}, "did:plc:large": 58, "did:plc:last": 2}
    with storage.scratch() as scratch:
        writer = PackWriter(storage, HOST, scratch)
        for did, rows in rows_of.items():
            for start in range(0, rows, 4):
                rkeys = [f"{n:05d}" for n in range(start, min(rows, start + 4))]
                writer.add_records(records(did, ["c"] * len(rkeys), rkeys, [b"x"] * len(rkeys)))
        writer.add_attempt(COMPLETE)
        writer.commit()
    files = [storage.read(key) for key in storage.keys("repos", "*.blocks-*.parquet")]
    assert max(file.height for file in files) <= 20 + 3
    every = pl.concat(files)
    assert dict(every["did"].value_counts().iter_rows()) == rows_of
    assert every.select("did", "rkey").is_unique().all()
    in_several = [did for did in rows_of if sum(did in file["did"] for file in files) > 1]
    assert in_several == ["did:plc:large"]


@pytest.mark.parametrize("at_once", [1, 2, 256])
def test_the_ledger_tells_of_every_pack_however_many_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(packs, "_PACKS_AT_ONCE", at_once)
    monkeypatch.chdir(tmp_path)
    storage = StudyStorage(Path("data"))
    names = {}
    for did in ("did:plc:e", "did:plc:a", "did:plc:d", "did:plc:c", "did:plc:b"):
        failed = replace(COMPLETE, did=f"{did}-failed", outcome=Outcome.FAILED)
        names[did] = write(storage, [replace(COMPLETE, did=did), failed], [b"x", b"y"])
    storage.remove(f"repos/{partition_folder(HOST)}/{names['did:plc:c']}.blocks-0.parquet")
    ledger = read_ledger(storage)
    assert ledger.schema == packs.LEDGER_SCHEMA
    found = ledger.select("did", "outcome", "pds_host", "pack").rows()
    expected = [
        (did + suffix, outcome, HOST, pack)
        for did, pack in sorted(names.items())
        for suffix, outcome in (("", "complete"), ("-failed", "failed"))
        if (did, suffix) != ("did:plc:c", "")
    ]
    assert found == expected


def test_blocks_that_no_pack_names_are_swept_and_others_stay(storage: StudyStorage) -> None:
    write(storage, [COMPLETE], [b"x", b"y"])
    [committed] = storage.keys("repos", "*.blocks-*.parquet")
    orphan = f"{committed.rpartition('/')[0]}/{'0' * 20}.blocks-0.parquet"
    storage.write(orphan, pl.DataFrame({"a": [1]}))
    assert sweep_uncommitted_blocks(storage, HOST) == 1
    assert storage.keys("repos", "*.blocks-*.parquet") == [committed]
