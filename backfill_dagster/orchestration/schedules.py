"""Schedules: the nightly refresh, and the newest time partition of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster import study_files
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.activity import activity
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.partitions import time_partitions
from backfill_dagster.orchestration.tags import STUDY_TAG

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

# What the schedules are set to, and switched off, as long as the study says nothing.
REFRESH_CRON = "0 3 * * *"
NEWEST_PARTITION_CRON = "0 * * * *"


def study_schedules(study: Study) -> list[dg.ScheduleDefinition]:
    """Return a study's schedules; raises ConfigError for a cron expression that means no time."""
    return [_refresh(study), _newest_partition(study)]


def _refresh(study: Study) -> dg.ScheduleDefinition:
    def evaluate(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        busy = activity(context.instance, study)
        return dg.SkipReason(busy) if busy else dg.RunRequest(tags={STUDY_TAG: study.name})

    return _schedule(
        study,
        "refresh",
        job=f"{study.name}_refresh",
        cron=study.automation.refresh_cron,
        default_cron=REFRESH_CRON,
        evaluate=evaluate,
        description="Asks every account's current revision, fetches what has moved on, and brings the tables up to "
        "date. Asks servers, so it is off unless automation.refresh_cron is set, or it is switched on here.",
    )


def _newest_partition(study: Study) -> dg.ScheduleDefinition:
    def evaluate(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        busy = activity(context.instance, study)
        if busy:
            return dg.SkipReason(busy)
        newest = time_partitions(study.time_range).get_last_partition_key()
        if newest is None:
            return dg.SkipReason("the study has no time partition yet")
        ops = {
            f"{study.name}__{table}": {"config": {"again": True}} for table in study_files.study_tables(study)
        }
        return dg.RunRequest(
            partition_key=newest,
            run_config={**console_config(study), "ops": ops},
            tags={STUDY_TAG: study.name},
        )

    return _schedule(
        study,
        "newest_partition",
        job=f"{study.name}_stage_tables",
        cron=study.automation.newest_partition_cron,
        default_cron=NEWEST_PARTITION_CRON,
        evaluate=evaluate,
        description="Builds the newest time partition of every table from what is stored. Off unless "
        "automation.newest_partition_cron is set, or it is switched on here.",
    )


def _schedule(
    study: Study,
    name: str,
    *,
    job: str,
    cron: str | None,
    default_cron: str,
    evaluate: dg.ScheduleEvaluationFunction,
    description: str,
) -> dg.ScheduleDefinition:
    status = dg.DefaultScheduleStatus.STOPPED if cron is None else dg.DefaultScheduleStatus.RUNNING
    try:
        return dg.ScheduleDefinition(
            name=f"{study.name}_{name}_schedule",
            job_name=job,
            cron_schedule=cron or default_cron,
            execution_timezone=study.automation.timezone,
            execution_fn=evaluate,
            default_status=status,
            description=description,
            tags={"study": study.name},
        )
    except dg.DagsterInvalidDefinitionError as error:
        raise ConfigError(
            f"configs/{study.name}.yaml: backfill.automation.{name}_cron = {cron!r}: means no time; write five "
            "fields, such as `0 3 * * *`"
        ) from error
