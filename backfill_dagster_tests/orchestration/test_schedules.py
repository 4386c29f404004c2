"""Schedules: what they request and when, and what a study may say of them."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from backfill_dagster.definitions import build_defs
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster_tests.instances import local_instance
from backfill_dagster_tests.studies import sandbox_study


def schedules(configs: Path) -> dict[str, dg.ScheduleDefinition]:
    return {schedule.name: schedule for schedule in build_defs(configs).get_repository_def().schedule_defs}


def evaluate(configs: Path, name: str) -> Any:
    repository = build_defs(configs).get_repository_def()
    with local_instance(configs / "instance") as instance:
        made = dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=datetime(2026, 11, 22, 3, tzinfo=UTC),
            repository_def=repository,
        )
        with made as context:
            return repository.get_schedule_def(name).evaluate_tick(context)


def test_schedules_are_off_unless_the_study_sets_a_time(tmp_path: Path) -> None:
    sandbox_study(tmp_path)
    assert {schedule.default_status for schedule in schedules(tmp_path).values()} == {
        dg.DefaultScheduleStatus.STOPPED
    }
    sandbox_study(tmp_path, automation={"refresh_cron": "30 4 * * 1", "timezone": "Europe/Berlin"})
    refresh = schedules(tmp_path)["study_refresh_schedule"]
    assert refresh.default_status is dg.DefaultScheduleStatus.RUNNING
    assert refresh.cron_schedule == "30 4 * * 1"
    assert refresh.execution_timezone == "Europe/Berlin"
    assert refresh.job_name == "study_refresh"


def test_the_refresh_is_requested_unless_the_study_is_being_run(tmp_path: Path) -> None:
    study = sandbox_study(tmp_path)
    assert len(evaluate(tmp_path, "study_refresh_schedule").run_requests) == 1
    holder = StudyLockResource()
    with holder.yield_for_execution(dg.build_init_resource_context()) as study_lock:
        study_lock.take(study, "another")
        result = evaluate(tmp_path, "study_refresh_schedule")
    assert not result.run_requests
    assert "is being run" in result.skip_message


@pytest.mark.parametrize(
    ("time_range", "newest"),
    [
        ({"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}, "2024-12"),
        (
            {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop", "partitions": "weekly"},
            "2024-12-02",
        ),
        ({"start_date": "2024-09-27", "end_date": None}, datetime.now(UTC).strftime("%Y-%m")),
    ],
)
def test_the_newest_partition_is_the_one_that_the_period_ends_in(
    tmp_path: Path, time_range: dict[str, Any], newest: str
) -> None:
    sandbox_study(tmp_path, time_range=time_range)
    [request] = evaluate(tmp_path, "study_newest_partition_schedule").run_requests
    assert request.tags["dagster/partition"] == newest
    assert request.run_config["ops"]["study__posts"]["config"]["again"]


@pytest.mark.parametrize(
    ("automation", "said"),
    [
        ({"refresh_cron": "at three"}, "backfill.automation.refresh_cron = 'at three'"),
        ({"refresh_cron": "99 3 * * *"}, "backfill.automation.refresh_cron = '99 3 * * *'"),
        ({"newest_partition_cron": "0 3 * *"}, "backfill.automation.newest_partition_cron = '0 3 * *'"),
        ({"timezone": "Mars/Olympus"}, "backfill.automation.timezone = 'Mars/Olympus'"),
    ],
)
def test_a_time_that_is_none_is_said(tmp_path: Path, automation: dict[str, Any], said: str) -> None:
    with contextlib.suppress(ConfigError):
        sandbox_study(tmp_path, automation=automation)
    [job] = [job for job in build_defs(tmp_path).get_repository_def().get_all_jobs() if job.name == "study"]
    assert said in str(job.description)
