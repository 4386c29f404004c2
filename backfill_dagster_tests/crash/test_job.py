"""The real command, `dagster job execute`: interrupted, killed, and run again until it is through."""

import os
import signal
import time
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from backfill_dagster import study_files
from backfill_dagster.repos.packs import pack_keys, read_ledger
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.accounts import unreconciled
from backfill_dagster_tests.crash.command import STUDY
from backfill_dagster_tests.crash.job import SETTINGS, run_job, slow_study, start_job, wait_for_packs
from backfill_dagster_tests.crash.runs import wait_for_group
from backfill_dagster_tests.studies import sandbox

# Of the command's own end; what it takes is told by a person's patience.
SECONDS = 20


def test_however_a_run_ends_the_next_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = slow_study(tmp_path)
    storage = StudyStorage(study.root)

    # Ctrl-C goes to the whole group, a supervisor's SIGTERM to the one process that it knows.
    for send, number in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)):
        kept = len(pack_keys(storage))
        process = start_job(tmp_path)
        wait_for_packs(study, process, kept + 1)
        started = time.monotonic()
        send(process.pid, number)
        said, _ = process.communicate(timeout=SECONDS)
        assert time.monotonic() - started < SECONDS
        assert process.returncode == 1, said
        wait_for_group(process.pid)
        assert list((study.root / ".scratch").iterdir()) == []
        assert len(pack_keys(storage)) > kept
        assert not storage.exists(study_files.ACCOUNTS_KEY)
    assert "Interrupted. What was done is kept: run the same again to go on." in said

    kept = len(pack_keys(storage))
    process = start_job(tmp_path)
    wait_for_packs(study, process, kept + 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    settled = read_ledger(storage).filter(pl.col("outcome") != "failed")

    slow_study(tmp_path, requests_per_second=500)
    code, said = run_job(tmp_path)
    assert code == 0, said
    ledger = read_ledger(storage)
    attempts = ledger.group_by("did").len()
    assert set(attempts.filter(pl.col("len") > 1)["did"]) & set(settled["did"]) == set()
    accounts = storage.read(study_files.ACCOUNTS_KEY)
    assert accounts.height == len(sandbox(SETTINGS).dids)
    assert accounts.filter(pl.col("state").is_in(["failed", "pending"])).is_empty()
    assert unreconciled(accounts).is_empty()
    assert list((study.root / ".scratch").iterdir()) == []

    # The history is in the folder that the commands were started in.
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        runs = instance.get_runs(dg.RunsFilter(job_name=STUDY))
    ended = [run.status.value for run in runs]
    assert ended == ["SUCCESS", "FAILURE", "FAILURE", "FAILURE"]
