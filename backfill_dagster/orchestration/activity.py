"""Whether something works on a study already, so that nothing is begun beside it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster.orchestration.resources import is_locked
from backfill_dagster.orchestration.tags import STUDY_TAG

if TYPE_CHECKING:
    from backfill_dagster.config import Study

_WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
# A run that is started takes the study's lock within so many seconds; one without it after that is dead.
_STARTING_SECONDS = 60


def activity(instance: dg.DagsterInstance, study: Study) -> str | None:
    """Say what works on the study now, or is about to; None if nothing does."""
    if is_locked(study):
        return f"{study.name} is being run"
    tags = {STUDY_TAG: study.name}
    if instance.get_runs_count(dg.RunsFilter(statuses=_WAITING, tags=tags)):
        return f"a run of {study.name} waits for its turn"
    started = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=tags), limit=10
    )
    youngest = max((record.start_time or 0.0 for record in started), default=0.0)
    if time.time() - youngest < _STARTING_SECONDS:
        return f"a run of {study.name} is just starting"
    return None
