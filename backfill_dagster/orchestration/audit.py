"""The audit log as Dagster sees it: who started a run, what it was given, how it ended, and the asset that shows it."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from backfill_dagster.monitoring.audit_log import AUDIT_LOG_KEY, AuditLog, RunStatus
from backfill_dagster.orchestration.columns import column_metadata
from backfill_dagster.orchestration.console import failure_reason, is_interruption
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.metadata import counts_table, file_path
from backfill_dagster.orchestration.run_settings import PURGE_FIELDS, differing_settings
from backfill_dagster.orchestration.tags import STARTED_BY_TAG
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.config.study import Study

# What Dagster's own parts put on a run that they start, and how that is told; the first that is there counts.
_STARTERS = (
    (STARTED_BY_TAG, ""),
    ("dagster/schedule_name", "schedule "),
    ("dagster/sensor_name", "sensor "),
    ("dagster/from_automation_condition", "automation"),
    ("dagster/auto_materialize", "automation"),
    ("dagster/backfill", "backfill "),
    ("dagster/from_ui", "ui"),
)
_NO_VALUE = frozenset({"automation", "ui"})
_MAX_STARTER = 200
_SHOWN_RUNS = 20
_MAX_SHOWN_REASON = 160
_INTERRUPTED = "Interrupted. What was done is kept: run the same again to go on."
_CANCELED = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


def audit_log_asset(study: Study) -> dg.AssetsDefinition:
    """Return the asset of the audit log: every run writes it; materialized by itself, it is only shown anew."""

    @dg.asset(
        key=dg.AssetKey([study.name, "audit_log"]),
        group_name=study.name,
        kinds={"parquet"},
        metadata=column_metadata(study, "audit_log"),
        description="One row for each run of the study: who or what started it, with which settings and which code, "
        "what it did and how it ended. Every run writes its row by itself. Names no account.",
    )
    def audit_log() -> dg.MaterializeResult[None]:
        with clear_failures():
            rows = AuditLog(StudyStorage(study.location)).read()
        return dg.MaterializeResult(metadata=audit_metadata(study, rows))

    return audit_log


def report_audit_log(instance: dg.DagsterInstance, study: Study, rows: pl.DataFrame) -> None:
    """Show the log as it is at the end of a run, on the page of its asset."""
    key = dg.AssetKey([study.name, "audit_log"])
    instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=audit_metadata(study, rows)))


def audit_metadata(study: Study, rows: pl.DataFrame) -> dict[str, Any]:
    """Return the number of runs, and the latest of them as a table."""
    latest = rows.sort("started_at", descending=True).head(_SHOWN_RUNS)
    seconds = (pl.col("ended_at") - pl.col("started_at")).dt.total_milliseconds() / 1000
    shown = latest.select(
        pl.col("started_at").dt.strftime("%Y-%m-%d %H:%M:%S").alias("started (UTC)"),
        "job",
        "status",
        "started_by",
        seconds.alias("seconds"),
        pl.col("accounts_asked").alias("accounts"),
        pl.col("accounts_complete").alias("complete"),
        pl.col("accounts_failed").alias("failed"),
        pl.col("records_fetched").alias("records"),
        pl.col("reason").str.slice(0, _MAX_SHOWN_REASON),
        pl.col("run_id").str.slice(0, 8).alias("run"),
    )
    failed = rows.filter(pl.col("status").is_in([RunStatus.FAILED.value, RunStatus.DIED.value])).height
    return {
        "dagster/row_count": rows.height,
        "latest_runs": counts_table(shown),
        "failed_or_died": failed,
        "path": file_path(study.location / AUDIT_LOG_KEY),
    }


def started_by(run: dg.DagsterRun) -> str:
    """Say who or what started a run; see the column `started_by`."""
    for tag, word in _STARTERS:
        if tag in run.tags:
            return word if word in _NO_VALUE else f"{word}{run.tags[tag][:_MAX_STARTER]}"
    return f"command line {_user()}@{platform.node()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name, as in a container
        return "unknown"


def config_hash(study: Study) -> str:
    """Return the identity of the validated YAML, whatever order or comments it has."""
    told = json.dumps(study.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def run_settings(study: Study, run_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return by step what a run was given that differs from the YAML; of accounts and records only how many."""
    ops = run_config.get("ops")
    told: dict[str, Any] = {}
    for step, given in (ops if isinstance(ops, dict) else {}).items():
        config = given.get("config") if isinstance(given, dict) else None
        if isinstance(config, dict) and (differing := differing_settings(study, config)):
            told[str(step).removeprefix(f"{study.name}__")] = differing
    # The job of a purge takes its settings itself, and hands them to its step.
    given = {name: value for name, value in run_config.items() if name in PURGE_FIELDS}
    if differing := differing_settings(study, given):
        told["purge"] = differing
    return told


def outcome_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[RunStatus, str | None]:
    """Say how a run has ended, whose steps are all over, and why."""
    latest = instance.get_run_by_id(run.run_id)
    ended = {
        dg.DagsterEventType.STEP_SUCCESS,
        dg.DagsterEventType.STEP_FAILURE,
        dg.DagsterEventType.STEP_SKIPPED,
    }
    logged = [entry.dagster_event for entry in instance.all_logs(run.run_id, of_type=ended)]
    steps = [event for event in logged if event is not None]
    failures = [event for event in steps if event.is_step_failure]
    own = [event for event in failures if not is_interruption(event)]
    if latest is not None and latest.status in _CANCELED:
        return RunStatus.CANCELED, _INTERRUPTED
    if own:
        return RunStatus.FAILED, "; ".join(dict.fromkeys(map(failure_reason, own)))
    if failures or _planned_steps(instance, run) > len({event.step_key for event in steps}):
        return RunStatus.CANCELED, _INTERRUPTED
    return RunStatus.SUCCESS, None


def _planned_steps(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    if run.execution_plan_snapshot_id is None:
        return 0
    return len(instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute)
