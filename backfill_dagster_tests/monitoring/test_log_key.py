import stat
import threading
from pathlib import Path

import pytest

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.log_key import LOG_KEY, log_key, stored_log_key
from backfill_dagster.storage import StudyStorage


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path / "study")
    assert stored_log_key(storage) is None
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(log_key(storage))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 5
    assert len(found[0]) == 32
    assert stored_log_key(StudyStorage(tmp_path / "study")) == found[0]
    assert stat.S_IMODE(storage.path(LOG_KEY).stat().st_mode) == 0o600
    assert log_key(StudyStorage(tmp_path / "another")) != found[0]


def test_a_damaged_key_is_no_key(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    log_key(storage)
    # The empty one is known to everybody.
    for content in ("not hex", "", "00"):
        storage.path(LOG_KEY).write_text(content)
        with pytest.raises(StorageError, match="log_key"):
            log_key(storage)
