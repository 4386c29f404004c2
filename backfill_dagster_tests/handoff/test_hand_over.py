"""Each record is handed to each consumer once, whatever ends a run and whatever the consumer takes away."""

import sqlite3
import tempfile
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import handing_over
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError, StorageError
from backfill_dagster.handoff import hand_over as module
from backfill_dagster.handoff import ledger as ledger_module
from backfill_dagster.handoff.batches import of_size
from backfill_dagster.handoff.outbox import Outbox
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.handoff.built import (
    BOB,
    OutboxConsumer,
    QueueConsumer,
    queue_rows,
    study_with,
    uri,
    uris,
    write_window,
)
from backfill_dagster_tests.handoff.killing import KilledError, counted_steps

FILES = {"type": "parquet", "tables": ["posts", "likes"], "batch_size": 4}
QUEUE = {"type": "sqlite", "tables": ["posts"], "batch_size": 3}
BOTH = {"files": FILES, "queue": QUEUE}


def put_folders_on_another_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no rename reach consumers' folders from a study's own."""
    monkeypatch.setattr(Outbox, "_is_near", lambda box, storage: storage is not box._storage)


def outbox(study: Study, consumer: str = "files") -> Path:
    return study.root / f"handoff/{consumer}/outbox"


def queue(study: Study, consumer: str = "queue") -> Path:
    return study.root / f"handoff/{consumer}/queue.sqlite"


def test_two_consumers_get_every_record_once_over_several_runs(tmp_path: Path) -> None:
    study = study_with(tmp_path, BOTH)
    posts, likes = uris(10), uris(5, "likes")
    write_window(study, "2024-10", posts[:6])
    write_window(study, "2024-11", posts[6:8])
    write_window(study, "2024-10", likes, "likes")
    files, rows = OutboxConsumer(outbox(study)), QueueConsumer(queue(study))

    first = handing_over.hand_over_all(study)
    assert first["files"].offered == {"posts": 8, "likes": 5}
    assert first["files"].exported == {"posts": 8, "likes": 5}
    assert first["files"].batches == 4
    assert first["queue"].exported == {"posts": 8}
    files.consume()
    again = handing_over.hand_over_all(study)
    assert again["files"].exported == {"posts": 0, "likes": 0}
    assert again["files"].already_exported == {"posts": 8, "likes": 5}

    # More in an old window, a new window, and one that has become undated.
    write_window(study, "2024-10", [*posts[1:6], posts[9]])
    write_window(study, "2024-12", posts[8:9])
    write_window(study, "undated", posts[:1])
    rows.consume()
    assert handing_over.pending_consumers(study) == ["files", "queue"]
    third = handing_over.hand_over_all(study)
    assert third["files"].exported == {"posts": 2, "likes": 0}
    assert handing_over.pending_consumers(study) == []
    files.consume()
    rows.consume()
    assert files.taken == Counter([*posts, *likes])
    assert rows.taken == Counter(posts)


def test_batches_hold_the_tables_columns(tmp_path: Path) -> None:
    study = study_with(tmp_path, {"files": FILES})
    write_window(study, "2024-10", uris(9), text="a text", langs=None)
    handing_over.hand_over(study, "files")
    batches = [pl.read_parquet(path) for path in outbox(study).glob("posts/*.parquet")]
    assert sorted(batch.height for batch in batches) == [1, 4, 4]
    assert all(batch.schema == TABLE_BY_NAME["posts"].schema for batch in batches)
    whole = pl.concat(batches).sort("uri")
    expected = StudyStorage(study.root).read("tables/posts/month=2024-10/part-00000.parquet")
    assert whole.equals(expected)


@pytest.mark.parametrize("records_per_row", [None, 2])
def test_rows_of_a_queue(tmp_path: Path, records_per_row: int | None) -> None:
    told = {**QUEUE, "columns": ["text"], "queue_table": "inputs"}
    study = study_with(tmp_path, {"queue": {**told, "records_per_row": records_per_row}})
    posts = uris(3)
    write_window(study, "2024-10", posts, text="\u0000 a “text”")
    handing_over.hand_over(study, "queue")
    rows = queue_rows(queue(study), "inputs")
    records = [{"uri": one, "text": "\u0000 a “text”"} for one in posts]
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["status"] for row in rows} == {"pending"}
    assert all(len(row["created_at"]) == len("2024-10-01-00:00:00") for row in rows)
    if records_per_row is None:
        assert [row["payload"] for row in rows] == records
    else:
        assert [row["payload"] for row in rows] == [records[:2], records[2:]]
    [batch] = {row["metadata"]["batch"] for row in rows}
    assert rows[-1]["metadata"] == {
        "backfill": "study",
        "consumer": "queue",
        "table": "posts",
        "batch": batch,
        "batch_size": records_per_row or 1,
        "actual_batch_size": 1,
    }


def test_the_previous_system_s_queue_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "input.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(
            "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT, "
            "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, status TEXT DEFAULT 'pending')"
        )
        database.execute("INSERT INTO queue (id, payload, metadata) VALUES (41, '{}', '{}')")
    study = study_with(tmp_path, {"queue": {**QUEUE, "path": str(path)}})
    write_window(study, "2024-10", uris(2))
    handing_over.hand_over(study, "queue")
    assert [row["id"] for row in queue_rows(path)] == [41, 42, 43]


def test_a_table_that_is_no_queue_is_refused_before_anything_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "input.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, body TEXT)")
    study = study_with(tmp_path, {"queue": {**QUEUE, "path": str(path)}})
    write_window(study, "2024-10", uris(2))
    with pytest.raises(StorageError, match="its table queue has no column payload"):
        handing_over.hand_over(study, "queue")
    path.write_bytes(b"no database at all, but longer than a header of one would be" * 10)
    with pytest.raises(StorageError, match="not a database"):
        handing_over.hand_over(study, "queue")
    path.unlink()
    assert handing_over.hand_over(study, "queue").exported == {"posts": 2}


@pytest.mark.parametrize("is_far", [False, True])
@pytest.mark.parametrize(
    ("consumer", "settings"), [("files", {**FILES, "tables": ["posts"], "batch_size": 3}), ("queue", QUEUE)]
)
def test_killed_at_every_step_while_the_consumer_takes_all_away(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    consumer: str,
    settings: dict[str, object],
    is_far: bool,
) -> None:
    posts = uris(6)
    if is_far:
        put_folders_on_another_disk(monkeypatch)
    end_at, killed = 1, True
    while killed:
        folder = tmp_path / f"at{end_at}"
        folder.mkdir()
        study = study_with(folder, {consumer: settings})
        taker = OutboxConsumer(outbox(study)) if consumer == "files" else QueueConsumer(queue(study))
        write_window(study, "2024-10", posts[:4])
        with counted_steps(monkeypatch) as steps:
            steps.end_at = end_at
            killed = False
            try:
                handing_over.hand_over(study, consumer)
            except KilledError:
                killed = True
            steps.end_at = None
        taker.consume()
        # What comes meanwhile makes other batches of what is left.
        write_window(study, "2024-09", posts[4:5])
        write_window(study, "2024-10", [*posts[:4], posts[5]])
        handing_over.hand_over(study, consumer)
        taker.consume()
        assert taker.taken == Counter(posts), f"killed at step {end_at}"
        assert not list((study.root / f"handoff/{consumer}/staged").rglob("*.parquet"))
        end_at += 1
    # Places, two batches of staging, ledger and delivery, and what was looked at.
    assert end_at > 16


def test_killed_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_with(tmp_path, BOTH)
    posts, likes = uris(30), uris(6, "likes", BOB)
    write_window(study, "2024-10", posts)
    write_window(study, "2024-10", likes, "likes")
    takers: list[OutboxConsumer | QueueConsumer] = [
        OutboxConsumer(outbox(study)),
        QueueConsumer(queue(study)),
    ]
    with counted_steps(monkeypatch) as steps:
        for number in range(1, 27):
            steps.passed, steps.end_at = 0, number % 13 + 1
            with suppress(KilledError):
                handing_over.hand_over_all(study)
            steps.end_at = None
            takers[number % 2].consume()
    handing_over.hand_over_all(study)
    for taker in takers:
        taker.consume()
    assert takers[0].taken == Counter([*posts, *likes])
    assert takers[1].taken == Counter(posts)


def test_the_ledger_is_merged_and_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_MOST_FILES", 3)
    monkeypatch.setattr(ledger_module, "_ROWS_AT_ONCE", 2)
    study = study_with(tmp_path, {"files": {**FILES, "tables": ["posts"], "batch_size": 2}})
    taker = OutboxConsumer(outbox(study))
    everyone = [uri(f"did:plc:{letter}{'a' * 23}", "r") for letter in "abcdefghij234567"]
    for number in range(4, len(everyone) + 1, 4):
        write_window(study, "2024-10", everyone[:number])
        handing_over.hand_over(study, "files")
        taker.consume()
        assert len(list((study.root / "handoff/files/ledger/posts").iterdir())) <= 3
    assert taker.taken == Counter(everyone)
    assert ledger_module.HandoffLedger(StudyStorage(study.root), "handoff/files/ledger/posts").rows() == 16


def test_killed_while_the_ledger_is_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_MOST_FILES", 1)
    study = study_with(tmp_path, {"files": {**FILES, "tables": ["posts"], "batch_size": 2}})
    taker = OutboxConsumer(outbox(study))
    write_window(study, "2024-10", uris(8))
    with counted_steps(monkeypatch) as steps:
        for end_at in range(1, 40):
            steps.passed, steps.end_at = 0, end_at
            with suppress(KilledError):
                handing_over.hand_over(study, "files")
        steps.end_at = None
        handing_over.hand_over(study, "files")
    write_window(study, "2024-10", uris(9))
    handing_over.hand_over(study, "files")
    taker.consume()
    assert taker.taken == Counter(uris(9))


def test_lots_and_rows_are_bounded_and_their_bounds_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_URIS_AT_ONCE", 3)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(module, "_ROWS_IN_GROUP", 2)
    study = study_with(tmp_path, {"files": {**FILES, "tables": ["posts"], "batch_size": 5}})
    everyone = [
        *(uri(f"did:plc:{letter}{'a' * 23}", "r") for letter in "abcdefghij234567"),
        *uris(7, did="did:web:example.com"),
    ]
    write_window(study, "2024-10", everyone[::2])
    write_window(study, "2024-11", everyone[1::2])
    report = handing_over.hand_over(study, "files")
    batches = [pl.read_parquet(path) for path in outbox(study).glob("posts/*.parquet")]
    assert sorted(batch.height for batch in batches) == [3, 5, 5, 5, 5]
    assert report.batches == 5
    assert sorted(pl.concat(batches)["uri"]) == sorted(everyone)


def test_classification_false_skips_it_and_keeps_what_was_noted(tmp_path: Path) -> None:
    study = study_with(tmp_path, BOTH)
    write_window(study, "2024-10", uris(3))
    handing_over.hand_over_all(study)
    off = study_with(tmp_path, BOTH, classification=False)
    write_window(off, "2024-10", uris(5))
    assert handing_over.consumers(off) == []
    assert handing_over.hand_over_all(off) == {}
    on = study_with(tmp_path, BOTH)
    assert handing_over.hand_over(on, "files").exported == {"posts": 2, "likes": 0}


def test_a_consumer_that_moves_elsewhere_goes_on(tmp_path: Path) -> None:
    study = study_with(tmp_path, {"files": FILES})
    write_window(study, "2024-10", uris(3))
    handing_over.hand_over(study, "files")
    moved = study_with(tmp_path, {"files": {**FILES, "path": str(tmp_path / "elsewhere")}})
    write_window(moved, "2024-10", uris(4))
    assert handing_over.hand_over(moved, "files").exported["posts"] == 1
    [batch] = (tmp_path / "elsewhere").rglob("*.parquet")
    assert pl.read_parquet(batch)["uri"].to_list() == [uris(4)[3]]


def test_killed_at_every_step_and_then_moved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_at, killed = 1, True
    while killed:
        folder = tmp_path / f"at{end_at}"
        folder.mkdir()
        before, after = folder / "before.db", folder / "after.db"
        study = study_with(folder, {"queue": {**QUEUE, "path": str(before)}})
        write_window(study, "2024-10", uris(4))
        with counted_steps(monkeypatch) as steps:
            steps.end_at = end_at
            killed = False
            try:
                handing_over.hand_over(study, "queue")
            except KilledError:
                killed = True
            steps.end_at = None
        moved = study_with(folder, {"queue": {**QUEUE, "path": str(after)}})
        handing_over.hand_over(moved, "queue")
        takers = [QueueConsumer(before), QueueConsumer(after)]
        for taker in takers:
            taker.consume()
        assert takers[0].taken + takers[1].taken == Counter(uris(4)), f"killed at step {end_at}"
        assert not list((study.root / "handoff/queue/staged").rglob("*.parquet"))
        end_at += 1
    assert end_at > 16


def test_a_queue_whose_name_is_a_word_of_sql(tmp_path: Path) -> None:
    study = study_with(tmp_path, {"queue": {**QUEUE, "queue_table": "order"}})
    write_window(study, "2024-10", uris(2))
    handing_over.hand_over(study, "queue")
    assert [row["payload"]["uri"] for row in queue_rows(queue(study), '"order"')] == uris(2)


def test_a_queue_in_which_rows_would_have_no_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "input.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE queue (id TEXT PRIMARY KEY, payload, metadata, created_at, status)")
    study = study_with(tmp_path, {"queue": {**QUEUE, "path": str(path)}})
    write_window(study, "2024-10", uris(2))
    with pytest.raises(StorageError, match="is not INTEGER PRIMARY KEY"):
        handing_over.hand_over(study, "queue")
    assert queue_rows(path) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no other disk to be had")
def test_a_folder_on_another_disk(tmp_path: Path) -> None:
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk to be had")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        elsewhere = Path(disk) / "outbox"
        study = study_with(tmp_path, {"files": {**FILES, "path": str(elsewhere)}})
        write_window(study, "2024-10", uris(3))
        assert handing_over.hand_over(study, "files").exported["posts"] == 3
        taker = OutboxConsumer(elsewhere)
        taker.consume()
        assert taker.taken == Counter(uris(3))
        left = [path for path in Path(disk).rglob("*") if path.is_file()]
        assert not left


def test_a_folder_that_is_the_top_of_another_disk_is_refused_before_anything_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with(tmp_path, {"files": FILES})
    write_window(study, "2024-10", uris(3))
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_is_near", lambda *_: False)
        with pytest.raises(StorageError, match="is the top of its disk"):
            handing_over.hand_over(study, "files")
    assert handing_over.hand_over(study, "files").exported["posts"] == 3


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"type": "parquet", "tables": ["profiles"]},
            "names profiles; the study's tables are posts, replies",
        ),
        (
            {"type": "parquet", "tables": ["posts"], "columns": ["txt"]},
            "names txt, which posts does not have",
        ),
        (
            {"type": "parquet", "tables": ["posts"], "queue_table": "q"},
            "only a consumer of type sqlite has it",
        ),
        ({"type": "sqlite", "tables": ["posts"], "path": "s3://b/q"}, "must be a local path"),
        ({"type": "sqlite", "tables": ["posts"], "queue_table": "a; b"}, "queue_table"),
        ({"type": "sqlite", "tables": ["posts"], "queue_table": "handed_over_batches"}, "another use"),
        ({"type": "sqlite", "tables": ["posts"], "queue_table": "sqlite_sequence"}, "another use"),
        ({"type": "sqlite", "tables": ["posts", "posts"]}, "names posts twice"),
    ],
)
def test_what_a_consumer_cannot_say(tmp_path: Path, settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        study_with(tmp_path, {"classifier": settings})
    with pytest.raises(ConfigError, match=r"integrations\.consumers"):
        study_with(tmp_path, {"../up": FILES})


def test_frames_are_cut_to_one_size() -> None:
    rows = pl.DataFrame({"n": range(11)})
    frames = list(of_size([rows[:1], rows[1:1], rows[1:9], rows[9:]], 3))
    assert [frame.height for frame in frames] == [3, 3, 3, 2]
    assert pl.concat(frames).equals(rows)
    assert list(of_size([], 3)) == []
