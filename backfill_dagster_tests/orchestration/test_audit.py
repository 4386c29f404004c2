"""What the audit log says of a run, told from what Dagster knows of it."""

import getpass
import platform
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.orchestration.audit import config_hash, run_settings, started_by
from backfill_dagster_tests.studies import sandbox_study

DID = "did:plc:" + "a" * 24


def run_with(**tags: str) -> dg.DagsterRun:
    return dg.DagsterRun(job_name="study", run_id="run", tags=tags)


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"dagster/schedule_name": "study_refresh_schedule"}, "schedule study_refresh_schedule"),
        ({"dagster/sensor_name": "study_new_data"}, "sensor study_new_data"),
        ({"dagster/from_automation_condition": "true"}, "automation"),
        ({"dagster/backfill": "abcdefgh"}, "backfill abcdefgh"),
        ({"dagster/from_ui": "true"}, "ui"),
        ({"backfill_dagster/started_by": "api:nightly", "dagster/from_ui": "true"}, "api:nightly"),
        ({}, f"command line {getpass.getuser()}@{platform.node()}"),
    ],
)
def test_who_or_what_started_a_run(tags: dict[str, str], told: str) -> None:
    assert started_by(run_with(**tags)) == told


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return sandbox_study(tmp_path, processing={"max_retries": 5, "requests_per_second": 7})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, {}),
        ({"ops": {}}, {}),
        ({"loggers": {"console": {"config": {"log_level": "INFO"}}}}, {}),
        ({"ops": {"study__fetch_hosts": {"config": {"max_retries": 5, "requests_per_second": 7.0}}}}, {}),
        (
            {"ops": {"study__fetch_hosts": {"config": {"max_retries": 0}}}},
            {"fetch_hosts": {"max_retries": 0}},
        ),
        (
            {
                "ops": {
                    "study__fetch_hosts": {"config": {"only_dids": [DID, DID], "only_hosts": ["pds.example"]}}
                }
            },
            {"fetch_hosts": {"only_dids": 2, "only_hosts": ["pds.example"]}},
        ),
        ({"ops": {"study__repos": {"config": {"mode": "unsettled", "only_dids": []}}}}, {}),
        ({"ops": {"study__repos": {"config": {"mode": "refresh"}}}}, {"repos": {"mode": "refresh"}}),
        (
            {"ops": {"study__posts": {"config": {"again": True, "only_stale": False}}}},
            {"posts": {"again": True}},
        ),
        ({"dids": [DID], "uris": [f"at://{DID}/a.b.c/d"]}, {"purge": {"dids": 1, "uris": 1}}),
        ({"file": "withdrawn.txt", "dids": []}, {"purge": {"file": "withdrawn.txt"}}),
        ({"ops": {"study__repos": None, "study__posts": {"inputs": {}}}}, {}),
    ],
)
def test_what_a_run_was_given_that_differs_from_the_yaml(
    study: Study, config: dict[str, Any], told: dict[str, Any]
) -> None:
    assert run_settings(study, config) == told


def test_the_hash_is_of_what_the_yaml_means(tmp_path: Path) -> None:
    first = sandbox_study(tmp_path, "study", description=None)
    written_out = sandbox_study(tmp_path, "study", inactive_accounts="hide", monitoring={"log_level": "INFO"})
    other = sandbox_study(tmp_path, "study", inactive_accounts="keep")
    assert config_hash(first) == config_hash(written_out) != config_hash(other)
