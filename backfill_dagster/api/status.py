"""Where a job stands, made of what Dagster tells of its run, of the runs of its stages and of what those reported."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backfill_dagster.api.models import Counts, JobError, JobState, JobStatus, Progress, Stage
from backfill_dagster.monitoring.account_names import without_accounts
from backfill_dagster.orchestration.tags import STARTED_BY_TAG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.api.deployment import AssetEvent, Run, StepFailure

_STATES = {
    "QUEUED": JobState.QUEUED,
    "NOT_STARTED": JobState.STARTING,
    "MANAGED": JobState.STARTING,
    "STARTING": JobState.STARTING,
    "STARTED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "CANCELING": JobState.CANCELING,
    "CANCELED": JobState.CANCELED,
    "SUCCESS": JobState.SUCCEEDED,
    "FAILURE": JobState.FAILED,
}
# The assets whose stages say how far they are.
ASSET_OF_STAGE = {"discover": "directory", "fetch": "repos", "convert": "records"}
_STAGE_JOB = "_stage_"
_PREFIX = "progress/"
_FAILURE_REASON, _INTERRUPTED = "dagster/failure_reason", "UNEXPECTED_TERMINATION"
_MAX_ERRORS = 20
_MAX_MESSAGE = 2_000


def state_of(run: Run) -> JobState:
    """Return a run's state; one that a later version of Dagster has invented counts as under way."""
    return _STATES.get(run.status, JobState.RUNNING)


def stage_name(run: Run) -> str | None:
    """Return which stage a run is; None if it is a whole job."""
    _, found, stage = run.job.rpartition(_STAGE_JOB)
    return stage if found else None


def end_of(run: Run) -> float | None:
    """Return until when a run can have told of itself: events are written a little after it has ended."""
    return None if run.ended_at is None else run.ended_at + 1


def job_status(
    run: Run,
    stage_runs: Sequence[Run],
    observed: dict[str, list[AssetEvent]],
    accounts: Sequence[AssetEvent],
    failures: Sequence[StepFailure],
) -> JobStatus:
    """Put together where a job stands.

    `observed` are the observations of each stage's asset, the latest first, and `accounts` the materializations of the
    table of accounts; both may be of other runs too.
    """
    stages = [
        Stage(
            stage=stage_name(part) or part.job,
            run_id=part.id,
            state=_stage_state(part, run),
            started_at=_instant(part.started_at),
            ended_at=_instant(part.ended_at),
            progress=_progress(part, observed.get(stage_name(part) or "", [])),
        )
        for part in sorted(stage_runs, key=lambda part: part.created_at)
    ]
    told = [stage for stage in stages if stage.progress]
    under_way = stages[-1] if stages and not run.is_over else None
    return JobStatus(
        job_id=run.id,
        config=run.study or "",
        job=run.job,
        state=state_of(run),
        started_by=run.tags.get(STARTED_BY_TAG),
        created_at=_at(run.created_at),
        started_at=_instant(run.started_at),
        ended_at=_instant(run.ended_at),
        stage=under_way.stage if under_way else None,
        progress=told[-1].progress if told else None,
        stages=stages,
        counts=_counts({run.id, *(part.id for part in stage_runs)}, accounts),
        errors=_errors(failures),
    )


def _stage_state(part: Run, whole: Run) -> JobState:
    """Return the state of a stage, which is a part of the process of a whole job, and over when that is."""
    ended = part.tags.get(_FAILURE_REASON) == _INTERRUPTED
    if part.id != whole.id and whole.is_over and (ended or not part.is_over):
        # Of a stage that is ended from outside Dagster says that it failed, or nothing any more.
        return JobState.CANCELED if whole.status == "CANCELED" else JobState.FAILED
    return state_of(part)


def _progress(run: Run, observed: Sequence[AssetEvent]) -> Progress | None:
    latest = next((event for event in observed if event.run_id == run.id), None)
    if latest is None:
        return None
    values = {
        label.removeprefix(_PREFIX): value
        for label, value in latest.metadata.items()
        if label.startswith(_PREFIX)
    }
    unit = next((name.removesuffix("_total") for name in values if name.endswith("_total")), None)
    if unit is None:
        return None
    done, total = int(values.pop(f"{unit}_done")), int(values.pop(f"{unit}_total"))
    return Progress(
        unit=unit,
        done=done,
        total=total,
        percent=round(100 * done / total, 1) if total else 100.0,
        per_second=values.pop(f"{unit}_per_second", None),
        seconds_to_go=values.pop("seconds_to_go", None),
        at=_at(latest.at),
        details=values,
    )


def _counts(runs: set[str], accounts: Sequence[AssetEvent]) -> Counts | None:
    told: dict[str, Any] | None = next((event.metadata for event in accounts if event.run_id in runs), None)
    if told is None:
        return None
    return Counts(
        accounts=told.get("dagster/row_count", 0),
        accounts_by_state=told.get("accounts_per_state", {}),
        undated=told.get("undated", 0),
        records_fetched=told.get("records_fetched", 0),
        records_kept=told.get("records_kept", 0),
        records_filtered=told.get("records_filtered", 0),
        records_rejected=told.get("records_rejected", 0),
    )


def _errors(failures: Sequence[StepFailure]) -> list[JobError]:
    """Return why steps failed; why the run did, only if no step says so."""
    steps = [failure for failure in failures if failure.step is not None] or failures
    # What failed may have been about an account, which no answer is to name.
    return [
        JobError(step=failure.step, message=without_accounts(failure.message)[:_MAX_MESSAGE])
        for failure in steps[:_MAX_ERRORS]
    ]


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else _at(seconds)


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
