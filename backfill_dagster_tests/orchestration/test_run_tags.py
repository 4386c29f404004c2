"""A study's `run_tags` become the tags of its jobs, by which ECS, Kubernetes and Celery tell what a run gets."""

import json
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
import yaml

from backfill_dagster.config.loading import load_study
from backfill_dagster.config.run_tags import RunKind
from backfill_dagster.definitions import build_defs
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.tags import STUDY_TAG

_RESOURCES = {"container_config": {"resources": {"limits": {"memory": "16Gi"}}}}


def write(folder: Path, run_tags: Any) -> Path:
    body = {
        "name": "panel",
        "source": {"type": "inline", "dids": ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"]},
        "run_tags": run_tags,
    }
    path = folder / "panel.yaml"
    path.write_text(yaml.safe_dump({"backfill": body}))
    return path


def test_every_job_has_those_of_all_runs_and_its_own(tmp_path: Path) -> None:
    kinds = [kind for kind in get_args(RunKind) if kind != "all"]
    write(
        tmp_path,
        {
            "all": {"dagster/priority": 3, "queue": "slow"},
            "tables": {"queue": "fast", "dagster-k8s/config": _RESOURCES},
            **{kind: {"kind": kind} for kind in kinds if kind != "tables"},
        },
    )
    repository = build_defs(tmp_path).get_repository_def()
    jobs = {
        job.name: dict(job.tags)
        for job in repository.get_all_jobs()
        if job.name.startswith("panel") and not job.name.startswith("__")
    }
    assert len(jobs) > 10
    for name, tags in jobs.items():
        assert tags[STUDY_TAG] == "panel"
        assert tags["dagster/priority"] == "3"
        if name == "panel_stage_tables":
            assert tags["queue"] == "fast"
            assert json.loads(tags["dagster-k8s/config"]) == _RESOURCES
            continue
        last = name.removeprefix("panel").removeprefix("_").removeprefix("stage_")
        assert tags["kind"] == (last if last in kinds else "whole")
        assert tags["queue"] == "slow"
    [automation] = [sensor for sensor in repository.sensor_defs if sensor.name == "panel_report"]
    assert isinstance(automation, dg.AutomationConditionSensorDefinition)
    assert automation.run_tags["kind"] == "accounts"


@pytest.mark.parametrize(
    ("run_tags", "complaint"),
    [
        ({"fetch": {STUDY_TAG: "other"}}, "must not begin with backfill_dagster/"),
        ({"fetch": {"dagster/partition": "x"}}, "is Dagster's own"),
        ({"fetch": {"ecs cpu": "1"}}, "must be a tag's name"),
        ({"fetching": {"ecs/cpu": "1"}}, "fetching"),
        ({"fetch": {"ecs/cpu": ["1"]}}, "fetch"),
    ],
)
def test_a_tag_that_cannot_be_is_named(tmp_path: Path, run_tags: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_study(write(tmp_path, run_tags))
