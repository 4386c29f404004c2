"""Whether something works on a study already, so that nothing is begun beside it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster.orchestration.history import belongs_to
from backfill_dagster.orchestration.resources import is_locked

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

_WAITING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]
# A run that is started takes the study's lock within a minute; one that is about to start is started within some
# more. What still has not done so then is dead. Only in the queue a run may wait as long as it likes.
_SECONDS = {
    dg.DagsterRunStatus.STARTED: 60,
    dg.DagsterRunStatus.STARTING: 600,
    dg.DagsterRunStatus.NOT_STARTED: 600,
}
_MOST_RUNS = 200


def activity(instance: dg.DagsterInstance, study: Study) -> str | None:
    """Say what works on the study now, or is about to; None if nothing does. Raises StorageError."""
    if is_locked(study):
        return f"{study.name} is being run"
    now = time.time()
    for record in instance.get_run_records(dg.RunsFilter(statuses=_WAITING), limit=_MOST_RUNS):
        run = record.dagster_run
        since = record.start_time or record.create_timestamp.timestamp()
        if belongs_to(run, study) and now - since < _SECONDS.get(run.status, now):
            return f"run {run.run_id} of {study.name} is about to start"
    return None
