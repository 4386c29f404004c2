import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster import purging, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA
from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring import events
from backfill_dagster.monitoring.account_names import AccountHashes
from backfill_dagster.monitoring.log_key import log_key
from backfill_dagster.monitoring.structured_log import LogFile, StructuredLog
from backfill_dagster.purge.tombstones import Tombstones, bury
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.studies import sandbox_study

GONE, WEB, STAYS = "did:plc:" + "a" * 24, "did:web:gone.example.org", "did:plc:" + "b" * 24
HANDLE = "gone.person.example"
URI = f"at://{STAYS}/app.bsky.feed.post/3kgone"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    log_file = str(tmp_path / "log.jsonl")
    return sandbox_study(
        tmp_path, source={"type": "inline", "dids": [STAYS]}, monitoring={"log_file": log_file}
    )


def write(study: Study, backfill: str, hashes: AccountHashes | None = None) -> None:
    assert study.monitoring.log_file is not None
    file = LogFile(study.monitoring.log_file)
    log = StructuredLog(backfill, "run", sinks=(file.write,), hashes=hashes)
    for did in (GONE, WEB, STAYS):
        log.emit(events.ACCOUNT_SETTLED, did=did, host="pds.example")
        log.message(30, f"{did.replace(':', '%3A')}: no such repo, at://{did}/app.bsky.feed.post/3k. Ünïcode")
    log.message(30, f"the handle {HANDLE.title()} and the record {URI} and https://not{HANDLE}")
    file.close()


def lines(study: Study) -> list[str]:
    assert study.monitoring.log_file is not None
    return study.monitoring.log_file.read_text(encoding="utf-8").splitlines()


def know(study: Study) -> None:
    """Store a directory that has the handle."""
    row = {
        "did": GONE,
        "handle": HANDLE,
        "state": "resolved",
        "resolved_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    StudyStorage(study.root).write(
        study_files.DIRECTORY_KEY, pl.DataFrame([row], schema=pl.Schema(DIRECTORY_SCHEMA))
    )


def purge(study: Study) -> int:
    report = purging.purge(study, dids=[GONE, WEB], uris=[URI], rebuild=lambda study: None)
    return report.masked_in_log


def test_the_purged_are_masked_in_the_lines_of_the_study_and_nobody_else(study: Study) -> None:
    know(study)
    write(study, study.name)
    write(study, "another")
    before = lines(study)
    assert purge(study) == 5
    after = lines(study)
    own, other = after[:7], after[7:]
    assert other == before[7:]
    text = "\n".join(own)
    for name in ("aaaa", "gone.example.org", "Gone.Person", "3kgone"):
        assert name not in text
    assert f"https://not{HANDLE}" in text, "is somebody else"
    assert own[4] == before[4]
    assert f'"did":"{STAYS}"' in text
    assert [len(line) for line in after] == [len(line) for line in before]
    assert all(json.loads(line)["backfill"] for line in after)
    assert purge(study) == 0


def test_hashes_of_the_purged_are_masked_too(study: Study) -> None:
    hashes = AccountHashes(log_key(StudyStorage(study.root)))
    write(study, study.name, hashes)
    purge(study)
    text = "\n".join(lines(study))
    for did in (GONE, WEB):
        assert hashes.did(did) not in text
    assert hashes.text(URI) not in text
    assert text.count(hashes.did(STAYS)) == 3
    assert len([line for line in lines(study) if json.loads(line)["did"] == f"xxxxxxx:{'x' * 24}"]) == 2


def test_a_purge_that_was_interrupted_masks_them_when_it_is_finished(study: Study) -> None:
    hashes = AccountHashes(log_key(StudyStorage(study.root)))
    know(study)
    write(study, study.name, hashes)
    write(study, study.name)
    bury(StudyStorage(study.root), [GONE], [], datetime(2026, 1, 1, tzinfo=UTC))
    purging.purge(study, rebuild=lambda study: None)
    text = "\n".join(lines(study))
    assert GONE not in text
    assert hashes.did(GONE) not in text
    assert Tombstones.load(StudyStorage(study.root)).unfinished == 0


def test_lines_that_are_torn_or_none_of_ours_are_looked_through_too(study: Study) -> None:
    assert study.monitoring.log_file is not None
    content = b'{"timestamp":"2026", "did":"' + GONE.encode() + b"\n\xff\xfe " + GONE.encode()
    study.monitoring.log_file.write_bytes(content)
    assert purge(study) == 2
    after = study.monitoring.log_file.read_bytes()
    assert after == content.replace(b"a" * 24, b"x" * 24)


@pytest.mark.parametrize("did", [GONE, WEB])
def test_the_purged_are_masked_however_a_server_has_written_them(study: Study, did: str) -> None:
    assert study.monitoring.log_file is not None
    spellings = [did.upper(), did.replace(":", "%253a"), f"at%253A%252F%252F{did.replace(':', '%253A')}"]
    study.monitoring.log_file.write_text("".join(f"{spelling}\n" for spelling in [*spellings, STAYS.upper()]))
    assert purge(study) == 3
    after = lines(study)
    assert [len(line) for line in after[:3]] == [len(spelling) for spelling in spellings]
    assert not any(name in line.lower() for line in after for name in ("aaaa", "gone"))
    assert after[3] == STAYS.upper()


def test_without_a_log_there_is_nothing_to_mask(study: Study) -> None:
    assert purge(study) == 0
    assert study.monitoring.log_file is not None
    assert not study.monitoring.log_file.exists()


def test_a_log_that_cannot_be_changed_leaves_the_purge_unfinished(study: Study) -> None:
    assert study.monitoring.log_file is not None
    study.monitoring.log_file.mkdir()
    with pytest.raises(StorageError, match=r"log\.jsonl"):
        purge(study)
    assert Tombstones.load(StudyStorage(study.root)).unfinished == 3
