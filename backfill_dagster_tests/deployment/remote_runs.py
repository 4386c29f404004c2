"""Runs as the daemon makes them: of a job of a code location that is somewhere else."""

from typing import Any

import dagster as dg
from dagster._core.workspace.context import WorkspaceRequestContext

_NO_DETAILS: dict[str, Any] = dict.fromkeys(
    (
        *("run_id", "run_config", "resolved_op_selection", "step_keys_to_execute", "status", "root_run_id"),
        *("parent_run_id", "op_selection", "asset_selection", "asset_check_selection"),
        *("job_snapshot", "execution_plan_snapshot", "parent_job_snapshot"),
    )
)


def create_remote_run(
    instance: dg.DagsterInstance,
    workspace: WorkspaceRequestContext,
    job: str,
    tags: dict[str, str] | None = None,
) -> dg.DagsterRun:
    """Create a run of a job of the only code location, with the job's tags and others."""
    [location] = workspace.code_locations
    repository = location.get_repository("__repository__")
    found = repository.get_full_job(job)
    return instance.create_run(
        **{
            **_NO_DETAILS,
            "job_name": job,
            "tags": {**found.tags, **(tags or {})},
            "remote_job_origin": found.get_remote_origin(),
            "job_code_origin": found.get_python_origin(),
            "asset_graph": repository.asset_graph,
        }
    )
