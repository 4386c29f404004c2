"""Runs the real command, `dagster job execute`, in a process group of its own, and watches how far it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.crash.command import STUDY
from backfill_dagster_tests.crash.scenario import PERIOD
from backfill_dagster_tests.studies import sandbox_study

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

DAGSTER = str(Path(sys.executable).with_name("dagster"))
PATIENCE_SECONDS = 90
SETTINGS = SandboxSettings(seed=11, accounts=60, hosts=2, records=6)


def slow_study(folder: Path, *, requests_per_second: float = 4, **parts: object) -> Study:
    """Write a study whose fetch takes several seconds, and the settings of Dagster, into a folder.

    A host's first ten requests go out at once; the rest of its accounts come at this pace.
    """
    shutil.copy(ROOT / "dagster.yaml", folder)
    processing = {"requests_per_second": requests_per_second, "workers": 1, "batch_size": 3}
    return sandbox_study(folder, STUDY, SETTINGS, processing=processing, time_range=PERIOD, **parts)


def start_job(folder: Path, job: str = STUDY, *prefix: str) -> subprocess.Popen[str]:
    """Start the job of a folder's study; what it says comes through pipes."""
    environment = {**os.environ, "BACKFILL_CONFIGS": str(folder), "PYTHONPATH": str(ROOT)}
    environment.pop("DAGSTER_HOME", None)
    return subprocess.Popen(
        [*prefix, DAGSTER, "job", "execute", "-m", "backfill_dagster", "-j", job],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_job(folder: Path, *prefix: str) -> tuple[int, str]:
    """Run the job to its end; return its exit code and what it said."""
    process = start_job(folder, STUDY, *prefix)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, said


def wait_for_packs(study: Study, process: subprocess.Popen[str], number: int = 1) -> None:
    """Wait until so many packs are committed, while the fetch goes on."""
    storage = StudyStorage(study.root)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(pack_keys(storage)) < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
