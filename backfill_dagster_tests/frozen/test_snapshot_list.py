"""A frozen build whose list of snapshots says what it was written with, and cannot be read for all that."""

import hashlib
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.manifest.canonical import Told, read_told, write_told
from backfill_dagster.manifest.keys import SNAPSHOTS_KEY
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster_tests.frozen.builds import ALICE
from backfill_dagster_tests.frozen.test_purge import attempt, frozen_study


@pytest.mark.parametrize("kind", ["garbage", "columns"])
def test_is_found(tmp_path: Path, kind: str) -> None:
    study = frozen_study("disk", tmp_path)
    storage, path = StudyStorage(study.location), study.root / "frozen/v1" / SNAPSHOTS_KEY
    if kind == "garbage":
        path.write_bytes(b"garbage")
    else:
        pl.DataFrame({"did": [1, 2]}).write_parquet(path)
    told = read_told(storage, "frozen/v1/manifest.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    accounts = {**told.content["accounts"], "sha256": digest, "bytes": path.stat().st_size}
    write_told(storage, "frozen/v1/manifest.json", Told({**told.content, "accounts": accounts}, told.made))
    assert check_frozen(storage, 1)[1]
    if kind == "garbage":
        # And stands in the way of no purge.
        attempt(study, [ALICE])
        assert check_frozen(storage, 1)[1]
