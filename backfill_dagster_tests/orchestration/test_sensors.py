"""Sensors: each step of a study by itself, once, and none beside a run that is under way."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from backfill_dagster import pipeline, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.definitions import build_defs
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.tags import PARENT_TAG, STUDY_TAG
from backfill_dagster.sandbox.faults import HostDown
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.instances import local_instance
from backfill_dagster_tests.studies import sandbox, sandbox_study, table_hashes

DROP = {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}
STAGES: list[Callable[[Study], object]] = [
    pipeline.collect_source,
    pipeline.resolve_accounts,
    pipeline.fetch_repos,
    pipeline.convert_records,
    pipeline.build_tables,
]
SENSORS = ["study_new_dids", "study_new_hosts", "study_new_data"]
GET_REPO = "com.atproto.sync.getRepo"


class Daemon:
    """Evaluates sensors one after the other and performs what they request, as Dagster's daemon does."""

    def __init__(self, configs: Path, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.repository = build_defs(configs).get_repository_def()
        self.cursors: dict[str, str | None] = {}
        self.run_keys: set[str] = set()

    def tick(self, sensor: str) -> SensorExecutionData:
        """Evaluate a sensor and keep its cursor."""
        made = dg.build_sensor_context(
            instance=self.instance, repository_def=self.repository, cursor=self.cursors.get(sensor)
        )
        with made as context:
            result = self.repository.get_sensor_def(sensor).evaluate_tick(context)
        self.cursors[sensor] = result.cursor
        return result

    def perform(self, result: SensorExecutionData) -> list[str]:
        """Run what a tick requested; return the names of the jobs."""
        for request in result.run_requests or ():
            assert request.run_key not in self.run_keys
            self.run_keys.add(str(request.run_key))
            self.repository.get_job(str(request.job_name)).execute_in_process(
                instance=self.instance,
                run_config=request.run_config,
                tags=dict(request.tags),
                raise_on_error=False,
            )
        return [str(request.job_name) for request in result.run_requests or ()]

    def until_quiet(self) -> list[str]:
        """Tick all of the study's sensors until none requests anything; return the jobs in their order."""
        done: list[str] = []
        for _ in range(20):
            jobs = [
                job
                for name in ("new_dids", "new_hosts", "new_data")
                for job in self.perform(self.tick(f"study_{name}"))
            ]
            if not jobs:
                return [job.removeprefix("study_stage_") for job in done]
            done += jobs
        raise AssertionError(f"the sensors find no end: {done}")


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    network = sandbox()
    network.faults.clear()
    network.requests.clear()
    yield network
    network.faults.clear()


@pytest.fixture
def dids(tmp_path: Path, network: SandboxNetwork) -> Path:
    """A source that leaves out one account, which is complete and the only one of the study on its host."""
    path = tmp_path / "dids.txt"
    path.write_text("\n".join(network.dids[:-1]) + "\n")
    return path


@pytest.fixture
def study(tmp_path: Path, dids: Path) -> Study:
    configs = tmp_path / "configs"
    configs.mkdir()
    return sandbox_study(
        configs,
        source={"type": "text", "path": str(dids)},
        time_range=DROP,
        storage={"path": str(tmp_path / "data")},
    )


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a study of these accounts that is built and up to date."""
    folder = tmp_path_factory.mktemp("collected")
    dids = folder / "dids.txt"
    dids.write_text("\n".join(sandbox().dids[:-1]) + "\n")
    study = sandbox_study(folder, source={"type": "text", "path": str(dids)}, time_range=DROP)
    for stage in STAGES:
        stage(study)
    return study.root


@pytest.fixture
def built(study: Study, collected: Path) -> Study:
    """The study, with its storage built and up to date."""
    shutil.copytree(collected, study.root)
    return study


@pytest.fixture
def daemon(tmp_path: Path, study: Study) -> Iterator[Daemon]:
    with local_instance(tmp_path / "instance") as instance:
        yield Daemon(tmp_path / "configs", instance)


def test_sensors_alone_do_what_all_stages_in_a_row_do(
    daemon: Daemon, study: Study, dids: Path, network: SandboxNetwork, tmp_path: Path
) -> None:
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]
    # Nothing is built before anything is fetched.
    assert not daemon.tick("study_new_data").run_requests
    assert daemon.until_quiet() == ["fetch", "convert", "tables", "accounts"]

    # A new account: nothing but it is fetched, and only the windows that it has records in are built.
    network.requests.clear()
    added = network.dids[-1]
    with dids.open("a") as file:
        file.write(f"{added}\n")
    assert daemon.until_quiet() == ["discover", "fetch", "convert", "tables", "accounts"]
    assert {request.did for request in network.requests.all(path=GET_REPO)} == {added}
    accounts = pl.read_parquet(study.root / "accounts.parquet")
    [account] = accounts.filter(pl.col("did") == added).to_dicts()
    assert account["state"] == "complete"
    assert account["records_kept"] > 0

    whole = sandbox_study(tmp_path, "whole", time_range=DROP, storage={"path": str(tmp_path / "data")})
    for stage in STAGES:
        stage(whole)
    assert table_hashes(study) == table_hashes(whole)


def test_the_same_stage_is_requested_again_for_other_work(daemon: Daemon, built: Study, dids: Path) -> None:
    # Accounts that the directory does not know change the table of accounts and nothing else.
    for letter in "ab":
        with dids.open("a") as file:
            file.write(f"did:plc:{24 * letter}\n")
        assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]
        assert daemon.perform(daemon.tick("study_new_data")) == ["study_stage_accounts"]


def test_only_changed_partitions_are_built_and_told_of(daemon: Daemon, built: Study) -> None:
    assert daemon.until_quiet() == []
    [path] = built.root.glob("tables/posts/month=2024-10/*.parquet")
    path.unlink()
    # Without a run that could have changed anything the sensor does not look.
    assert daemon.until_quiet() == []
    daemon.cursors.clear()
    daemon.run_keys.clear()
    count = len(daemon.instance.fetch_materializations(dg.AssetKey(["study", "posts"]), limit=1000).records)
    assert daemon.until_quiet() == ["tables"]
    told = daemon.instance.fetch_materializations(dg.AssetKey(["study", "posts"]), limit=1000).records
    assert len(told) == count + 1
    assert told[0].partition_key == "2024-10"
    assert path.exists()


def test_sensors_wait_while_the_study_is_run(daemon: Daemon, study: Study) -> None:
    holder = StudyLockResource()
    with holder.yield_for_execution(dg.build_init_resource_context()) as study_lock:
        study_lock.take(study, "the-one-command")
        for name in SENSORS:
            result = daemon.tick(name)
            assert not result.run_requests
            assert "is being run" in str(result.skip_message)
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]


def test_sensors_wait_for_a_run_that_is_queued(daemon: Daemon, study: Study) -> None:
    job = dg.JobDefinition(name="queued", graph_def=dg.GraphDefinition(name="queued", node_defs=[]))
    daemon.instance.create_run_for_job(
        job_def=job, tags={STUDY_TAG: study.name}, status=dg.DagsterRunStatus.NOT_STARTED
    )
    assert "is about to start" in str(daemon.tick("study_new_dids").skip_message)


def test_a_discovery_that_ended_half_way_is_not_taken_for_done(
    daemon: Daemon, built: Study, dids: Path
) -> None:
    with dids.open("a") as file:
        file.write(f"did:plc:{24 * 'b'}\n")
    pipeline.collect_source(built)
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]
    assert daemon.until_quiet() == ["accounts"]


def test_what_was_done_without_dagster_is_gone_on_with(daemon: Daemon, study: Study) -> None:
    assert not daemon.tick("study_new_hosts").run_requests
    assert not daemon.tick("study_new_data").run_requests
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    assert daemon.perform(daemon.tick("study_new_hosts")) == ["study_stage_fetch"]


def test_a_storage_that_was_deleted_is_filled_again(daemon: Daemon, study: Study) -> None:
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]
    assert daemon.tick("study_new_dids").skip_message == "nothing to do"
    shutil.rmtree(study.root)
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]


def test_the_tag_of_a_whole_run_does_not_open_the_lock_for_others(daemon: Daemon, built: Study) -> None:
    holder = StudyLockResource()
    job = daemon.repository.get_job("study_stage_accounts")
    with holder.yield_for_execution(dg.build_init_resource_context()) as study_lock:
        study_lock.take(built, "a-purge")
        for parent, succeeds in (("another", False), ("a-purge", True)):
            result = job.execute_in_process(
                instance=daemon.instance, tags={PARENT_TAG: parent}, raise_on_error=False
            )
            assert result.success is succeeds


def test_the_same_work_is_requested_once(daemon: Daemon, study: Study) -> None:
    first = daemon.tick("study_new_dids")
    assert first.run_requests
    again = daemon.tick("study_new_dids")
    assert not again.run_requests
    assert "was requested for this already" in str(again.skip_message)


def test_a_tick_that_is_repeated_after_a_crash_makes_the_same_run(daemon: Daemon, study: Study) -> None:
    first = daemon.tick("study_new_dids")
    daemon.cursors.clear()
    repeated = daemon.tick("study_new_dids")
    assert [request.run_key for request in first.run_requests or ()] == [
        request.run_key for request in repeated.run_requests or ()
    ]


def test_a_source_that_cannot_be_read_is_said_and_looked_at_again(
    daemon: Daemon, study: Study, dids: Path
) -> None:
    content = dids.read_text()
    dids.unlink()
    assert "there is no such file" in str(daemon.tick("study_new_dids").skip_message)
    dids.write_text(content)
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]


def test_a_source_that_was_only_touched_starts_nothing(daemon: Daemon, study: Study, dids: Path) -> None:
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]
    dids.write_text(dids.read_text())
    result = daemon.tick("study_new_dids")
    assert not result.run_requests
    assert result.skip_message == "nothing to do"


def test_what_is_excluded_is_followed_like_the_source(
    daemon: Daemon, study: Study, dids: Path, network: SandboxNetwork, tmp_path: Path
) -> None:
    withdrawn = tmp_path / "withdrawn.txt"
    withdrawn.write_text("# nobody yet\n")
    sandbox_study(
        tmp_path / "configs",
        source={"type": "text", "path": str(dids)},
        exclude={"type": "text", "path": str(withdrawn)},
        storage={"path": str(tmp_path / "data")},
    )
    daemon = Daemon(tmp_path / "configs", daemon.instance)
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]

    withdrawn.write_text(network.dids[0])
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]
    assert network.dids[0] not in set(study_files.source_dids(study))


def test_a_list_that_servers_give_is_for_a_person_to_read_again(
    daemon: Daemon, study: Study, dids: Path, tmp_path: Path
) -> None:
    handles = {"type": "handles", "handles": ["alice000.sandbox.test"]}
    text = {"type": "text", "path": str(dids)}
    for parts in (
        {"source": handles},
        {"source": {"type": "union", "sources": [text, handles]}},
        {"source": text, "exclude": handles},
    ):
        sandbox_study(tmp_path / "configs", storage={"path": str(tmp_path / "data")}, **parts)
        result = Daemon(tmp_path / "configs", daemon.instance).tick("study_new_dids")

        assert not result.run_requests
        assert "nothing tells whether it has changed" in str(result.skip_message)
        assert "study_stage_discover" in str(result.skip_message)


def test_what_another_backfill_finds_is_followed(
    daemon: Daemon, study: Study, network: SandboxNetwork, tmp_path: Path
) -> None:
    sandbox_study(
        tmp_path / "configs",
        "others",
        source={"type": "asset", "backfill": "study", "asset": "accounts", "column": "did"},
        storage={"path": str(tmp_path / "data")},
    )
    daemon = Daemon(tmp_path / "configs", daemon.instance)
    assert "materialize study/accounts first" in str(daemon.tick("others_new_dids").skip_message)

    found = study.root / "accounts.parquet"
    for dids in (network.dids[:3], network.dids[:5]):
        StudyStorage(study.root).write(found.name, pl.DataFrame({"did": dids}))
        [request] = daemon.tick("others_new_dids").run_requests or ()
        daemon.repository.get_job(str(request.job_name)).execute_in_process(
            instance=daemon.instance, run_config=request.run_config, tags=dict(request.tags)
        )
        stored = StudyStorage(study.root.parent / "others").read(study_files.SOURCE_KEY)
        assert stored["did"].to_list() == dids


def test_failed_accounts_are_not_tried_over_and_over(
    daemon: Daemon, study: Study, network: SandboxNetwork
) -> None:
    network.faults.set_host(network.hosts[1], HostDown())
    assert daemon.perform(daemon.tick("study_new_dids")) == ["study_stage_discover"]
    assert daemon.perform(daemon.tick("study_new_hosts")) == ["study_stage_fetch"]
    network.faults.clear()
    assert daemon.tick("study_new_hosts").skip_message == "nothing to do"


def test_what_starts_network_traffic_is_off_unless_the_study_says_so(tmp_path: Path, study: Study) -> None:
    repository = build_defs(tmp_path / "configs").get_repository_def()
    running = {
        sensor.name
        for sensor in repository.sensor_defs
        if sensor.default_status is dg.DefaultSensorStatus.RUNNING
    }
    assert running == {"study_new_data", "study_report"}
    sandbox_study(
        tmp_path / "configs",
        automation={"on_new_dids": True, "on_new_hosts": True, "on_new_data": False},
        monitoring={"alert_on_failure": True},
    )
    repository = build_defs(tmp_path / "configs").get_repository_def()
    running = {
        sensor.name
        for sensor in repository.sensor_defs
        if sensor.default_status is dg.DefaultSensorStatus.RUNNING
    }
    assert running == {
        *("study_new_dids", "study_new_hosts", "study_failure_alert", "study_pending_alerts"),
    }
