import json
import multiprocessing
import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backfill_dagster.errors import ConfigError
from backfill_dagster.monitoring import events, structured_log
from backfill_dagster.monitoring.account_names import AccountHashes
from backfill_dagster.monitoring.events import EVENTS, Event
from backfill_dagster.monitoring.structured_log import COMMON_FIELDS, LogFile, StructuredLog

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


class Lines:
    """Keeps lines as a sink takes them."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __call__(self, line: bytes) -> None:
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        self.lines.append(json.loads(line))


def log_to(lines: Lines, **settings: Any) -> StructuredLog:
    return StructuredLog("study", "run-1", sinks=(lines,), **settings)


def test_an_event_has_the_common_fields_in_order_and_its_own_after_them() -> None:
    lines = Lines()
    log_to(lines, clock=lambda: 1_700_000_000.25).emit(
        events.ACCOUNT_SETTLED,
        host="pds.example",
        did=DID,
        pack="p",
        duration=0.5,
        state="complete",
        bytes=10,
    )
    [line] = lines.lines
    assert tuple(line) == (*COMMON_FIELDS, "state", "bytes")
    assert line["timestamp"] == "2023-11-14T22:13:20.250Z"
    assert datetime.fromisoformat(line["timestamp"]).tzinfo == UTC
    assert line["event"] == "account_settled"
    assert line["level"] == "INFO"
    assert (line["backfill"], line["run_id"], line["did"], line["duration"]) == ("study", "run-1", DID, 0.5)


@pytest.mark.parametrize(
    ("level", "shown"),
    [("DEBUG", 3), ("INFO", 3), ("WARNING", 2), ("ERROR", 1)],
)
def test_the_level_is_honoured(level: str, shown: int) -> None:
    lines = Lines()
    log = log_to(lines, level=level)
    log.emit(events.ACCOUNT_SETTLED)
    log.emit(events.ACCOUNT_FAILED)
    log.message(40, "an error")
    assert len(lines.lines) == shown


def test_accounts_are_hashed_everywhere() -> None:
    lines, hashes = Lines(), AccountHashes(b"k" * 32)
    log = log_to(lines, hashes=hashes)
    log.emit(
        events.ACCOUNT_FAILED, did=DID, detail=f"{DID} has no such repo at://{DID}/app.bsky.feed.post/3k"
    )
    log.message(30, f"about {DID.replace(':', '%3A')}")
    assert "ewvi7nx" not in json.dumps(lines.lines)
    assert lines.lines[0]["did"] == hashes.did(DID)
    assert lines.lines[1]["message"] == f"about {hashes.did(DID)}"


def test_before_it_is_known_how_accounts_are_named_they_are_not() -> None:
    lines = Lines()
    log_to(lines, anonymous=True).message(40, f"no {DID}")
    assert lines.lines[0]["message"] == "no (an account)"


def test_what_servers_say_cannot_break_a_line_or_make_it_long() -> None:
    lines = Lines()
    log_to(lines).emit(events.ACCOUNT_FAILED, did=DID, detail='a\nb\u0000"\ud800' + "x" * 100_000)
    [line] = lines.lines
    assert line["detail"].startswith('a\nb\u0000"\\ud800x')
    assert len(line["detail"]) < 3_000
    log_to(lines).emit(events.ACCOUNT_FAILED, bytes=2**70)
    assert lines.lines[1]["bytes"] == str(2**70)
    log_to(lines).message(40, "x" * 100_000)
    assert len(lines.lines[2]["message"]) < 11_000


def test_a_name_at_which_a_text_is_cut_is_hashed_all_the_same() -> None:
    for length in range(1_970, 2_001):
        lines = Lines()
        log_to(lines, hashes=AccountHashes(b"k" * 32)).emit(
            events.ACCOUNT_FAILED, detail="x" * length + " somebody.bsky.social"
        )
        assert "somebody" not in lines.lines[0]["detail"]


def test_names_of_events_are_stable_words_and_each_is_its_own() -> None:
    names = [event.name for event in EVENTS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)
    declared = {value for value in vars(events).values() if isinstance(value, Event)}
    assert declared == set(EVENTS)


def test_events_reach_whoever_listens_in_their_context() -> None:
    import asyncio

    first, second = Lines(), Lines()

    async def tell(host: str) -> None:
        await asyncio.sleep(0)
        events.emit(events.HOST_BEGUN, host=host)

    async def stage(lines: Lines, host: str) -> None:
        with events.heard_by(log_to(lines)):
            await asyncio.create_task(tell(host))

    async def both() -> None:
        await asyncio.gather(stage(first, "one"), stage(second, "two"))

    asyncio.run(both())
    events.emit(events.HOST_BEGUN, host="nobody")
    assert not events.is_heard()
    assert [line["host"] for line in first.lines] == ["one"]
    assert [line["host"] for line in second.lines] == ["two"]


def write_many(path: str, number: int) -> None:
    file = LogFile(Path(path))
    log = StructuredLog(f"study{number}", "run", sinks=(file.write,))
    for position in range(300):
        log.emit(events.ACCOUNT_SETTLED, did=DID, detail="x" * (position * 17 % 2000), number=position)
    file.close()


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(str(path), number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for number in range(3):
        assert [line["number"] for line in lines if line["backfill"] == f"study{number}"] == list(range(300))
    # It names people.
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "file" / "log", tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=r"monitoring\.log_file") as raised:
            LogFile(path)
        assert str(path) in str(raised.value)


def test_a_full_disk_loses_lines_and_ends_nothing() -> None:
    file = LogFile(Path("/dev/full"))
    file.write(b"{}\n")
    assert file.lost == 1
    file.close()


def test_what_is_written_after_the_end_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured_log, "_LOOK_SECONDS", 0.0)
    file = LogFile(tmp_path / "log")
    file.close()
    (tmp_path / "log").unlink()
    file.write(b"1\n")
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_short_is_not_glued_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "log", os.write
    file = LogFile(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda descriptor, line: write(descriptor, line[:3]))
        file.write(b'{"a":1}\n')
    file.write(b'{"b":2}\n')
    file.close()
    assert path.read_bytes() == b'{"a\n{"b":2}\n'


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured_log, "_LOOK_SECONDS", 0.0)
    path = tmp_path / "log"
    file = LogFile(path)
    file.write(b"1\n")
    time.sleep(0.01)
    path.rename(tmp_path / "log.1")
    file.write(b"2\n")
    file.close()
    assert (tmp_path / "log.1").read_bytes() == b"1\n"
    assert path.read_bytes() == b"2\n"
