"""Which runs count as dead, on a broker and results in this process's memory."""

import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from celery.contrib.testing.worker import start_worker
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from backfill_dagster.orchestration import celery_launcher
from backfill_dagster.orchestration.celery_launcher import WatchedCeleryRunLauncher
from backfill_dagster.orchestration.tags import PARENT_TAG

STARTED = dg.DagsterRunStatus.STARTED
WORKER = "worker@here"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def launcher(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> WatchedCeleryRunLauncher:
    monkeypatch.setattr(celery_launcher, "_ANSWER_SECONDS", 0.2)
    launcher = WatchedCeleryRunLauncher(
        default_queue="dagster", broker="memory://", backend="cache+memory://", worker_silence_seconds=60
    )
    launcher.register_instance(instance)
    return launcher


def begun(
    instance: dg.DagsterInstance, launcher: WatchedCeleryRunLauncher, state: str, result: Any
) -> dg.DagsterRun:
    """Return a run whose task is in a state of Celery's."""
    task_id = uuid.uuid4().hex
    launcher.celery.backend.store_result(task_id, result, state)
    run: dg.DagsterRun = create_run_for_test(
        instance, job_name="study", status=STARTED, tags={DAGSTER_CELERY_TASK_ID_TAG: task_id}
    )
    return run


def test_a_worker_that_is_silent_for_too_long_is_gone(
    instance: dg.DagsterInstance, launcher: WatchedCeleryRunLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(celery_launcher, "time", SimpleNamespace(monotonic=lambda: now))
    run = begun(instance, launcher, "STARTED", {"hostname": WORKER})
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    now += 59
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    now += 1
    health = launcher.check_run_worker_health(run)
    assert (health.status, health.msg) == (
        WorkerStatus.FAILED,
        f"The worker {WORKER} has not answered for 60 s.",
    )


def test_a_worker_that_knows_nothing_of_a_run_has_begun_anew(
    instance: dg.DagsterInstance, launcher: WatchedCeleryRunLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It answers at once, if the machine lets it.
    monkeypatch.setattr(celery_launcher, "_ANSWER_SECONDS", 30)
    with start_worker(launcher.celery, pool="solo", perform_ping_check=False) as worker:
        run = begun(instance, launcher, "STARTED", {"hostname": worker.hostname})
        health = launcher.check_run_worker_health(run)
    assert (health.status, health.msg) == (
        WorkerStatus.FAILED,
        f"The worker {worker.hostname} has begun anew.",
    )


def test_a_task_that_failed_is_a_run_that_is_dead(
    instance: dg.DagsterInstance, launcher: WatchedCeleryRunLauncher
) -> None:
    lost = begun(instance, launcher, "FAILURE", RuntimeError("lost"))
    assert launcher.check_run_worker_health(lost).status is WorkerStatus.FAILED


def test_what_celery_knows_nothing_of_lives_as_long_as_what_it_is_part_of(
    instance: dg.DagsterInstance, launcher: WatchedCeleryRunLauncher
) -> None:
    whole = create_run_for_test(instance, job_name="study", status=STARTED)
    stage = create_run_for_test(
        instance, job_name="study_stage_fetch", status=STARTED, tags={PARENT_TAG: whole.run_id}
    )
    assert launcher.check_run_worker_health(whole).status is WorkerStatus.RUNNING
    assert launcher.check_run_worker_health(stage).status is WorkerStatus.RUNNING
    instance.report_run_failed(whole)
    assert launcher.check_run_worker_health(stage).status is WorkerStatus.FAILED


def test_a_run_that_somebody_ends_is_being_cancelled_and_not_dead(
    instance: dg.DagsterInstance, launcher: WatchedCeleryRunLauncher
) -> None:
    run = begun(instance, launcher, "STARTED", {"hostname": WORKER})
    assert launcher.terminate(run.run_id)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.CANCELING
    of_command_line = create_run_for_test(instance, job_name="study", status=STARTED)
    assert not launcher.terminate(of_command_line.run_id)
