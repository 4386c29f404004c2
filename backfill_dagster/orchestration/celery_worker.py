"""What Celery's workers load: `celery -A backfill_dagster.orchestration.celery_worker worker`.

Broker, results and settings are those of the run launcher of the instance in DAGSTER_HOME, so that they stand in one
place.
"""

from __future__ import annotations

from multiprocessing import process
from typing import TYPE_CHECKING

import dagster as dg
from celery.signals import worker_process_init
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tasks import create_execute_job_task

from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from celery import Celery

# What the standard library takes the worker for, before Celery has it take a process of its pool for one of its own.
_PROGRAM = process.current_process()


def worker_app() -> Celery:
    """Return the Celery app of the instance's run launcher, with the task that does a run; raises ConfigError."""
    with dg.DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        if not isinstance(launcher, CeleryRunLauncher):
            raise ConfigError(
                f"dagster.yaml: run_launcher: {type(launcher).__name__} starts no runs on Celery's workers; see "
                "configs/deploy/celery"
            )
        app = launcher.celery
    create_execute_job_task(app)
    return app


@worker_process_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def be_a_program(**_: object) -> None:
    """Let a process of Celery's pool start others, among which a stage shares its work out.

    To the standard library it is one of Celery's own kind, which may have no children and whose key they could not be
    given. Those that a stage starts watch for the end of this process by themselves.
    """
    process._current_process = _PROGRAM  # type: ignore[attr-defined]


app = worker_app()
