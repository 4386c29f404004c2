"""Runs as tasks of Celery workers: dagster-celery's own run launcher, and which of its runs are still worked on.

Whole runs, not steps: a stage is one step that shares its work out among processes by itself. Of a task that was
begun, Celery's results say no more until it ends; what was begun by a worker that is gone would be begun for ever.
Workers are therefore asked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from backfill_dagster.orchestration.tags import PARENT_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster._serdes import ConfigurableClassData

_SILENCE_FIELD = "worker_silence_seconds"
_DEFAULT_SILENCE_SECONDS = 60
# For an answer of a worker that is there.
_ANSWER_SECONDS = 2.0


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """Starts runs as Celery tasks, and knows a run as dead whose worker has said nothing for so many seconds.

    Or one whose worker has begun anew, and knows nothing of it.
    """

    def __init__(self, *, worker_silence_seconds: int = _DEFAULT_SILENCE_SECONDS, **settings: Any) -> None:
        super().__init__(**settings)
        self._silence = worker_silence_seconds
        # Since when the worker of a task has been silent, by the task's id.
        self._silent_since: dict[str, float] = {}

    @classmethod
    def config_type(cls) -> Any:
        """Return the fields of `dagster.yaml`: those of dagster-celery, and how long a worker may be silent."""
        silence = dg.Field(
            int,
            is_required=False,
            default_value=_DEFAULT_SILENCE_SECONDS,
            description="After how many seconds without an answer a worker is taken to be gone, with its runs.",
        )
        fields: Any = super().config_type()
        return {**fields, _SILENCE_FIELD: silence}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> WatchedCeleryRunLauncher:
        """Make it of the fields of `dagster.yaml`."""
        return cls(inst_data=inst_data, **config_value)

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Tell whether a run that is started is still worked on."""
        task_id = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        if PARENT_TAG in run.tags:
            return self._health_of_stage(run)
        if task_id is None:
            # Somebody's own process on this instance, of the command line.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        health = super().check_run_worker_health(run)
        gone = self._why_gone(task_id) if health.status is WorkerStatus.RUNNING else None
        if gone is None:
            return health
        # Its end may have been told meanwhile.
        health = super().check_run_worker_health(run)
        if health.status is WorkerStatus.RUNNING:
            return CheckRunHealthResult(WorkerStatus.FAILED, gone)
        return health

    def terminate(self, run_id: str) -> bool:
        """End a run; returns whether there was one to end, and it is the launcher's."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        # Else the end of its process would be that of a run that died, and it would be retried.
        self._instance.report_run_canceling(run)
        return bool(super().terminate(run_id))

    def _health_of_stage(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Tell whether the run lives in whose process a stage of it is done."""
        parent = self._instance.get_run_by_id(run.tags[PARENT_TAG])
        if parent is None or parent.is_finished:
            return CheckRunHealthResult(WorkerStatus.FAILED, "The run whose stage this is has ended.")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _why_gone(self, task_id: str) -> str | None:
        """Say why nobody works on a task that was begun; None if somebody does, or may."""
        told = self.celery.AsyncResult(task_id).info
        worker = told.get("hostname") if isinstance(told, dict) else None
        if worker is None:
            return None
        inspect = self.celery.control.inspect(destination=[worker], timeout=_ANSWER_SECONDS)
        answer = (inspect.query_task(task_id) or {}).get(worker)
        if answer is None:
            since = self._silent_since.setdefault(task_id, time.monotonic())
            if time.monotonic() - since < self._silence:
                return None
            return f"The worker {worker} has not answered for {self._silence} s."
        self._silent_since.pop(task_id, None)
        return None if task_id in answer else f"The worker {worker} has begun anew."
