"""Who withdraws leaves what was handed over and is still there: batches, queues, and what is noted of them."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import handing_over
from backfill_dagster.config.study import Study
from backfill_dagster.purge.request import RecordKey
from backfill_dagster.purge.tombstones import Tombstones, bury, settle
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.handoff.built import (
    ALICE,
    BOB,
    CAROL,
    POST,
    OutboxConsumer,
    QueueConsumer,
    queue_rows,
    study_with,
    uri,
    uris,
    write_window,
)
from backfill_dagster_tests.handoff.killing import KilledError, counted_steps
from backfill_dagster_tests.handoff.test_hand_over import put_folders_on_another_disk
from backfill_dagster_tests.purge.stored_bytes import files_with

NOW = datetime(2025, 1, 1, tzinfo=UTC)
MASKED = f"did:plc:{'x' * 24}"


def consumers(folder: Path, **queue: object) -> dict[str, object]:
    return {
        "files": {"type": "parquet", "tables": ["posts"], "batch_size": 3, "path": str(folder / "outbox")},
        "queue": {"type": "sqlite", "tables": ["posts"], **queue},
    }


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study that has handed over three posts of each of two accounts; those of one mention the other."""
    study = study_with(tmp_path, consumers(tmp_path))
    hand_over(study)
    return study


def hand_over(study: Study) -> None:
    mentions = [[] if one.startswith(f"at://{ALICE}") else [ALICE, CAROL] for one in posts()]
    texts = ["mine" if one.startswith(f"at://{ALICE}") else f"see {ALICE}" for one in posts()]
    write_window(study, "2024-10", posts(), text=texts, facet_mentions=mentions)
    handing_over.hand_over_all(study)


def posts() -> list[str]:
    return [*uris(3, did=ALICE), *uris(3, did=BOB)]


def purge(study: Study, *, records: tuple[RecordKey, ...] = ()) -> tuple[int, int]:
    storage = StudyStorage(study.root)
    tombstones = bury(storage, [] if records else [ALICE], records, NOW)
    purged = handing_over.purge(study, tombstones)
    settle(storage, NOW)
    return purged


def remove_tables(study: Study) -> None:
    """Leave of the study what handing over has made alone; the purge of the rest is tested elsewhere."""
    for key in StudyStorage(study.root).keys("tables"):
        StudyStorage(study.root).remove(key)


def test_an_account_is_in_no_byte_of_what_is_left(study: Study, tmp_path: Path) -> None:
    # Twice in each place, and three URIs in each ledger.
    assert purge(study) == (3 + 3 + 3 + 3, 3 + 3)
    remove_tables(study)
    assert [name for name in files_with(tmp_path, "a" * 24) if not name.endswith("study.yaml")] == []
    batches = pl.concat([pl.read_parquet(path) for path in (tmp_path / "outbox").rglob("*.parquet")])
    assert sorted(batches["uri"]) == uris(3, did=BOB)
    assert set(batches["text"]) == {f"see {MASKED}"}
    assert batches["facet_mentions"].to_list() == [[MASKED, CAROL]] * 3
    rows = queue_rows(study.root / "handoff/queue/queue.sqlite")
    assert [row["payload"]["uri"] for row in rows] == uris(3, did=BOB)
    assert rows[0]["payload"]["facet_mentions"] == [MASKED, CAROL]


def test_what_was_on_its_way_to_another_disk_is_reached(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folders_on_another_disk(monkeypatch)
    outbox, beside = tmp_path / "outbox", tmp_path / "outbox.incoming"
    batches = sorted(outbox.glob("*/*.parquet"))
    broken_off, near = beside / ".scratch" / "tmp0", beside / "batches" / "posts"
    for folder in (broken_off, near):
        folder.mkdir(parents=True)
    shutil.copyfile(batches[0], broken_off / "batch")
    for batch in batches:
        batch.rename(near / batch.name)
    # The consumer has made an end of its folder.
    shutil.rmtree(outbox)
    purge(study)
    assert not broken_off.exists()
    remove_tables(study)
    assert [name for name in files_with(tmp_path, "a" * 24) if not name.endswith("study.yaml")] == []
    left = pl.concat([pl.read_parquet(path) for path in outbox.rglob("*.parquet")])
    assert sorted(left["uri"]) == uris(3, did=BOB)


def test_a_single_record_goes_and_the_others_stay(study: Study, tmp_path: Path) -> None:
    assert purge(study, records=(RecordKey(ALICE, POST, "r00001"),)) == (4, 0)
    gone = uri(ALICE, "r00001")
    left = [one for one in posts() if one != gone]
    batches = pl.concat([pl.read_parquet(path) for path in (tmp_path / "outbox").rglob("*.parquet")])
    assert sorted(batches["uri"]) == left
    rows = queue_rows(study.root / "handoff/queue/queue.sqlite")
    assert [row["payload"]["uri"] for row in rows] == left


def test_rows_that_hold_several_records_lose_those_alone(tmp_path: Path) -> None:
    study = study_with(tmp_path, consumers(tmp_path, records_per_row=2))
    hand_over(study)
    purge(study)
    rows = queue_rows(study.root / "handoff/queue/queue.sqlite")
    told = [[record["uri"] for record in row["payload"]] for row in rows]
    assert told == [[posts()[3]], posts()[4:]]
    assert [row["metadata"]["actual_batch_size"] for row in rows] == [1, 2]


def test_what_others_put_into_the_folder_is_not_touched(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "outbox" / "posts"
    pl.DataFrame({"uri": uris(2, did=ALICE), "score": [1, 2]}).write_parquet(folder / "scores.parquet")
    (folder / ".half.parquet").write_bytes(b"PAR1")
    before = {path.name: path.read_bytes() for path in (folder / "scores.parquet", folder / ".half.parquet")}
    removed, _ = purge(study)
    assert removed
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_what_others_put_into_the_queue_is_not_touched(study: Study) -> None:
    path = study.root / "handoff/queue/queue.sqlite"
    foreign = json.dumps({"uri": uri(ALICE, "r00000")})
    with closing(sqlite3.connect(path)) as database, database:
        for metadata in ("{}", "no JSON", None):
            database.execute("INSERT INTO queue (payload, metadata) VALUES (?, ?)", (foreign, metadata))
        database.execute("UPDATE queue SET status = 'processing', payload = 'eaten' WHERE id = 1")
    purge(study)
    with closing(sqlite3.connect(path)) as database:
        left = [payload for (payload,) in database.execute("SELECT payload FROM queue ORDER BY id")]
    assert left[0] == "eaten"
    assert left[-3:] == [foreign] * 3
    assert len(left) == 1 + 3 + 3


def test_a_consumer_that_the_yaml_does_not_name_any_more(study: Study, tmp_path: Path) -> None:
    other = study_with(tmp_path, {"other": {"type": "parquet", "tables": ["posts"]}})
    purge(other)
    remove_tables(other)
    assert [name for name in files_with(tmp_path, "a" * 24) if not name.endswith("study.yaml")] == []


def test_what_is_taken_meanwhile_does_not_come_back(study: Study, tmp_path: Path) -> None:
    taker = OutboxConsumer(tmp_path / "outbox")
    taker.consume()
    purge(study)
    taker.consume()
    assert taker.taken.total() == 6


@pytest.mark.parametrize("is_far", [False, True])
def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_far: bool) -> None:
    if is_far:
        put_folders_on_another_disk(monkeypatch)
    end_at, killed = 1, True
    while killed:
        folder = tmp_path / f"at{end_at}"
        folder.mkdir()
        study = study_with(folder, consumers(folder))
        hand_over(study)
        storage = StudyStorage(study.root)
        tombstones = bury(storage, [ALICE], [], NOW)
        with counted_steps(monkeypatch) as steps:
            steps.end_at = end_at
            killed = False
            try:
                handing_over.purge(study, tombstones)
            except KilledError:
                killed = True
            steps.end_at = None
        # The tables are still as they were: handing over must not undo what the purge has done, or lose anything.
        handing_over.hand_over_all(study)
        taker = OutboxConsumer(folder / "outbox")
        rows = QueueConsumer(study.root / "handoff/queue/queue.sqlite")
        handing_over.purge(study, Tombstones.load(storage))
        taker.consume()
        rows.consume()
        assert sorted(taker.taken.elements()) == uris(3, did=BOB), f"killed at step {end_at}"
        assert sorted(rows.taken.elements()) == uris(3, did=BOB)
        end_at += 1
    assert end_at > 8


def test_what_is_owed_is_purged_before_it_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with(tmp_path, {"files": consumers(tmp_path)["files"]})
    write_window(study, "2024-10", uris(2, did=ALICE))
    with counted_steps(monkeypatch) as steps:
        # After the ledger's rename, before the delivery's: places, staged and ledger take two steps each.
        steps.end_at = 7
        with pytest.raises(KilledError):
            handing_over.hand_over(study, "files")
    assert len(StudyStorage(study.root).keys("handoff/files/staged")) == 1
    bury(StudyStorage(study.root), [ALICE], [], NOW)
    handing_over.hand_over(study, "files")
    assert list((tmp_path / "outbox").rglob("*.parquet")) == []
