"""The demo's study by its one command, with its files in an S3 on loopback, against the same on a disk.

Opt in with `pytest --aws`.
"""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from backfill_dagster.config.loading import load_study
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.shared_out import DEMO, DIDS, SECONDS, TIMES
from backfill_dagster_tests.dids.sources.s3_server import BUCKET

pytestmark = pytest.mark.aws


def run_demo(folder: Path, storage: dict[str, str], *jobs: str) -> StudyStorage:
    (folder / "configs").mkdir(parents=True)
    body = {**DEMO, "source": DIDS, "storage": storage}
    (folder / "configs/demo.yaml").write_text(yaml.safe_dump({"backfill": body}))
    environment = {**os.environ, "BACKFILL_CONFIGS": "configs", "PYTHONPATH": str(ROOT)}
    for name in ("DAGSTER_HOME", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    dagster = str(Path(sys.executable).with_name("dagster"))
    for job in jobs:
        command = [dagster, "job", "execute", "-m", "backfill_dagster", "-j", job]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr[-5000:]
    return StudyStorage(load_study(folder / "configs/demo.yaml").location)


def rows_of(storage: StudyStorage) -> dict[str, pl.DataFrame]:
    """Return what a reader opens, by key, less when something was asked for, which is another time in another run."""
    keys = [*storage.keys("tables"), *storage.keys("undated"), "accounts.parquet", "attrition.parquet"]
    return {key: storage.read(key).drop(TIMES, strict=False) for key in keys}


def test_its_tables_are_those_of_a_disk_and_it_proves_itself(tmp_path: Path, s3: Any) -> None:
    on_disk = run_demo(tmp_path / "disk", {"path": str(tmp_path / "data")}, "demo")
    place = {"type": "s3", "path": f"s3://{BUCKET}/{uuid.uuid4().hex}"}
    in_s3 = run_demo(tmp_path / "s3", place, "demo", "demo_verify")
    expected, found = rows_of(on_disk), rows_of(in_s3)
    assert len(expected) > 50
    assert expected.keys() == found.keys()
    assert [key for key in expected if not expected[key].equals(found[key])] == []
    assert not (tmp_path / "s3/data").exists()
