"""`python -m backfill_dagster.orchestration.dead_runs`: report those runs failed that no process does any more.

For the moment before a code server is started that is the only one of its instance, and all of whose processes ended
with the server before it: a machine that was switched off leaves its runs as started for ever, and each keeps a place
in the queue. Dagster retries what is reported here, if the instance has run retries.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from backfill_dagster.orchestration.tags import PARENT_TAG

if TYPE_CHECKING:
    from collections.abc import Sequence

_BEGUN = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_REASON = "The code server whose process this run was has ended."


def report_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Report the runs failed that a code server was to do, and the stages of these; return their ids.

    A run of the command line is a process by itself, and is left alone.
    """
    begun = [record.dagster_run for record in instance.get_run_records(dg.RunsFilter(statuses=_BEGUN))]
    dead = [run for run in begun if GRPC_INFO_TAG in run.tags]
    dead += _stages_of(begun, {run.run_id for run in dead})
    for run in dead:
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, _REASON)
        else:
            instance.report_run_failed(run, _REASON)
    return [run.run_id for run in dead]


def _stages_of(runs: Sequence[dg.DagsterRun], parents: set[str]) -> list[dg.DagsterRun]:
    return [run for run in runs if run.run_id not in parents and run.tags.get(PARENT_TAG) in parents]


def main() -> None:
    """Do so on the instance of DAGSTER_HOME, and say which runs they were."""
    with dg.DagsterInstance.get() as instance:
        for run_id in report_dead_runs(instance):
            sys.stderr.write(f"run {run_id} was left unfinished, and is reported failed\n")


if __name__ == "__main__":
    main()
