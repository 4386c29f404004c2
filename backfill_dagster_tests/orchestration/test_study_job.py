"""The one command: every stage in one run, history as if the UI had launched each."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError
from backfill_dagster.frozen.freeze import list_frozen
from backfill_dagster.manifest.canonical import Told
from backfill_dagster.manifest.keys import MANIFEST_KEY
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.report.page import build_report
from backfill_dagster.sandbox.faults import HostDown
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import SANDBOX, sandbox, sandbox_study, table_hashes

GET_REPO = "com.atproto.sync.getRepo"
# Four months instead of all: what a run writes into Dagster's history is most of its time here.
DROP = {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    network = sandbox()
    network.faults.clear()
    network.requests.clear()
    yield network
    network.faults.clear()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a study has stored that was collected without Dagster."""
    network = sandbox()
    network.faults.clear()
    study = sandbox_study(tmp_path_factory.mktemp("stored"), time_range=DROP)
    for stage in (pipeline.collect_source, pipeline.resolve_accounts, pipeline.fetch_repos, pipeline.rebuild):
        stage(study)
    build_report(study)
    return study.root


@pytest.fixture
def study(stored: Path, tmp_path: Path) -> Study:
    """A study whose accounts are collected already, and of which no instance knows."""
    study = sandbox_study(tmp_path, time_range=DROP)
    shutil.copytree(stored, study.root)
    return study


def messages(instance: dg.DagsterInstance, job: str, kind: dg.DagsterEventType) -> list[str]:
    run = instance.get_runs(dg.RunsFilter(job_name=job), limit=1)[0]
    return [
        str(entry.dagster_event.step_failure_data.user_failure_data.description)
        for entry in instance.all_logs(run.run_id, of_type=kind)
        if entry.dagster_event and entry.dagster_event.step_failure_data.user_failure_data
    ]


def partitions(instance: dg.DagsterInstance, study: str, asset: str) -> set[str | None]:
    key = dg.AssetKey([study, asset])
    return {record.partition_key for record in instance.fetch_materializations(key, limit=1000).records}


LOSSES = ("record_changes", "account_history", "attrition")


def metadata_of(instance: dg.DagsterInstance, asset: str) -> Mapping[str, dg.MetadataValue[Any]]:
    event = instance.get_latest_materialization_event(dg.AssetKey(["study", asset]))
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization.metadata


def test_one_command_leaves_tables_and_the_history_of_every_stage(
    network: SandboxNetwork, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    study = sandbox_study(tmp_path, time_range=DROP)
    assert execute(tmp_path, "study", instance)

    runs = {run.job_name: run.status for run in instance.get_runs()}
    assert set(runs) == {"study", *(f"study_stage_{stage}" for stage in STAGES)}
    assert set(runs.values()) == {dg.DagsterRunStatus.SUCCESS}
    hosts = set(instance.get_dynamic_partitions("study__pds"))
    assert partitions(instance, "study", "repos") == hosts == set(network.hosts)
    assert partitions(instance, "study", "records") == hosts
    assert len(partitions(instance, "study", "posts")) == len(list((study.root / "tables/posts").iterdir()))
    check = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [dg.AssetCheckKey(dg.AssetKey(["study", "accounts"]), "records_reconcile")]
    )
    assert all(record.event.asset_check_evaluation.passed for record in check.values())  # type: ignore[union-attr]

    told = {asset: metadata_of(instance, asset) for asset in LOSSES}
    assert (study.root / "methods.md").read_text() == told["attrition"]["methods"].value
    assert set(told["attrition"]) >= {"accounts_complete", "records_shown", "losses_by_step"}
    names = [name for account in network.truth.accounts() for name in (account.did, account.handle) if name]
    assert not any(name in str(told) for name in names)

    before = table_hashes(study)
    network.requests.clear()
    assert execute(tmp_path, "study", instance)
    assert network.requests.count(path=GET_REPO) == 0
    assert table_hashes(study) == before
    # Nothing had changed: no event tells again of what was told.
    assert len(instance.get_runs(dg.RunsFilter(job_name="study_stage_tables"))) == 1

    network.requests.clear()
    assert execute(tmp_path, "study_rebuild", instance)
    assert network.requests.count() == 0
    assert table_hashes(study) == before


def test_a_history_that_was_lost_is_told_anew_of_what_is_stored(
    network: SandboxNetwork, instance: dg.DagsterInstance, study: Study, tmp_path: Path
) -> None:
    before = table_hashes(study)
    assert execute(tmp_path, "study", instance)
    assert partitions(instance, "study", "posts") == {"2024-09", "2024-10", "2024-11", "2024-12"}
    assert table_hashes(study) == before


STAGES = ["discover", "fetch", "convert", "tables", "accounts"]


def test_a_host_that_is_down_fails_its_partition_and_no_other(
    network: SandboxNetwork, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    study = sandbox_study(
        tmp_path,
        time_range=DROP,
        processing={"requests_per_second": 500, "max_retries": 1, "workers": 2},
        snapshot="v1",
    )
    down = network.hosts[1]
    network.faults.set_host(down, HostDown())
    assert not execute(tmp_path, "study", instance)
    # What is frozen could not be added to.
    assert list_frozen(study) == []

    assert partitions(instance, "study", "repos") == set(network.hosts) - {down}
    [told] = messages(instance, "study", dg.DagsterEventType.STEP_FAILURE)
    assert down in told
    assert "again" in told
    accounts = pl.read_parquet(study.root / "accounts.parquet")
    assert set(accounts.filter(pl.col("state") == "failed")["pds_host"]) == {down}
    assert accounts.filter(pl.col("state") == "complete").height > 20

    network.faults.clear()
    network.requests.clear()
    assert execute(tmp_path, "study", instance)
    assert {request.host for request in network.requests.all(path=GET_REPO)} == {down}
    assert partitions(instance, "study", "repos") == set(network.hosts)
    [frozen] = list_frozen(study)
    assert frozen.made_of == Told.from_bytes((study.root / MANIFEST_KEY).read_bytes()).digest


def test_skip_backfill_makes_the_main_job_rebuild(
    network: SandboxNetwork, instance: dg.DagsterInstance, study: Study, tmp_path: Path
) -> None:
    before = table_hashes(study)
    # A directory that is old by now would be asked again by any other run.
    sandbox_study(
        tmp_path,
        time_range=DROP,
        processing={"skip_backfill": True, "workers": 2},
        network={"directory_max_age_hours": 0},
    )
    network.requests.clear()
    assert execute(tmp_path, "study", instance)
    assert network.requests.count() == 0
    assert table_hashes(study) == before


def test_a_second_live_run_of_a_study_is_refused_by_name(
    network: SandboxNetwork, instance: dg.DagsterInstance, study: Study, tmp_path: Path
) -> None:
    holder = StudyLockResource()
    with holder.yield_for_execution(dg.build_init_resource_context()) as study_lock:
        study_lock.take(study, "the-first-run")
        assert not execute(tmp_path, "study", instance)
        [told] = messages(instance, "study", dg.DagsterEventType.STEP_FAILURE)
        assert "the-first-run" in told
    assert execute(tmp_path, "study", instance)


def test_a_run_left_by_a_dead_process_is_reported_failed(
    network: SandboxNetwork, instance: dg.DagsterInstance, study: Study, tmp_path: Path
) -> None:
    tags = {"backfill_dagster/study": "study"}
    dead = instance.create_run_for_job(
        job_def=dg.JobDefinition(name="study", graph_def=dg.GraphDefinition(name="study", node_defs=[])),
        tags=tags,
        status=dg.DagsterRunStatus.STARTED,
    )
    assert execute(tmp_path, "study", instance)
    found = instance.get_run_by_id(dead.run_id)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"source": {"type": "text", "path": "nowhere.txt"}}, ["nowhere.txt"]),
        ({"network": {"sandbox": None, "plc_url": "http://127.0.0.1:9"}}, ["http://127.0.0.1:9"]),
        ({"processing": {"batch_size": 0}}, ["study.yaml", "backfill.processing.batch_size", "0"]),
    ],
)
def test_bad_input_ends_the_job_with_one_clear_message(
    network: SandboxNetwork,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    parts: dict[str, object],
    told: list[str],
) -> None:
    with contextlib.suppress(ConfigError):
        sandbox_study(tmp_path, "study", SANDBOX, **{"time_range": DROP, **parts})
    assert not execute(tmp_path, "study", instance)
    failures = [
        text
        for run in instance.get_runs()
        for text in messages(instance, run.job_name, dg.DagsterEventType.STEP_FAILURE)
    ]
    assert len(set(failures)) == 1
    for part in told:
        assert part in failures[0]
    assert not list(tmp_path.glob("data/study/*.parquet")) or not list(
        tmp_path.glob("data/study/directory.parquet")
    )
