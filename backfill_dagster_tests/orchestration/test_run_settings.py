"""What one run may set for itself, by the launchpad or a file, and what it refuses before it asks anybody."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest

from backfill_dagster import pipeline, study_files
from backfill_dagster.definitions import build_defs
from backfill_dagster.orchestration.history import forget_purged
from backfill_dagster.orchestration.run_settings import (
    AssetFetchSettings,
    directory_settings_class,
    fetch_settings_class,
)
from backfill_dagster.orchestration.tags import RANGE_END, RANGE_START
from backfill_dagster.purge.tombstones import bury
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.faults import HostDown
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox, sandbox_study

GET_REPO = "com.atproto.sync.getRepo"
REPOS = dg.AssetKey(["study", "repos"])
PERIOD = {"start_date": "2024-11-01", "end_date": "2024-11-30", "outside": "drop"}
NO_RETRIES = {"max_retries": 0}


@pytest.fixture(scope="module")
def discovered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("discovered")
    sandbox().faults.clear()
    study = sandbox_study(folder)
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    return study.root


class Deployment:
    """A study whose directory is resolved, and an instance that runs its jobs."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, discovered: Path) -> None:
        self.folder = folder
        self.study = sandbox_study(folder, time_range=PERIOD)
        self.instance = instance
        self.network = sandbox()
        shutil.copytree(discovered, self.study.root)
        self.repository = build_defs(folder).get_repository_def()
        self.hosts = sorted(self.network.hosts)
        instance.add_dynamic_partitions("study__pds", self.hosts)

    def fetch(self, **config: Any) -> dg.ExecuteInProcessResult:
        """Fetch with this configuration, over the range of all hosts."""
        return self.repository.get_job("study_stage_fetch").execute_in_process(
            instance=self.instance,
            run_config={"ops": {"study__repos": {"config": config}}},
            tags={RANGE_START: self.hosts[0], RANGE_END: self.hosts[-1]},
            raise_on_error=False,
        )

    def run_all(self, **ops: dict[str, Any]) -> bool:
        """Run the whole study with these configurations of its ops."""
        config = {"ops": {f"study__{op}": {"config": config} for op, config in ops.items()}}
        return execute(self.folder, "study", self.instance, config)

    def failures(self) -> str:
        """Return what the failed steps of all runs died of."""
        events = [
            entry.dagster_event
            for run in self.instance.get_runs()
            for entry in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        ]
        data = [event.step_failure_data.user_failure_data for event in events if event]
        return "\n".join(str(failure.description) for failure in data if failure)

    @property
    def asked(self) -> set[str]:
        return {request.host for request in self.network.requests.all(path=GET_REPO)}

    def statuses(self) -> dict[str, str]:
        partitions = dg.DynamicPartitionsDefinition(name="study__pds")
        found = self.instance.get_status_by_partition(REPOS, self.hosts, partitions) or {}
        return {host: status.value if status else "MISSING" for host, status in found.items()}


@pytest.fixture
def deployment(tmp_path: Path, discovered: Path) -> Iterator[Deployment]:
    network = sandbox()
    network.faults.clear()
    network.requests.clear()
    with dg.DagsterInstance.ephemeral() as instance:
        yield Deployment(tmp_path, instance, discovered)
    network.faults.clear()


def numbers(event: dg.AssetMaterialization | dg.AssetObservation | None) -> dict[str, Any]:
    assert event is not None
    return {name: value.value for name, value in event.metadata.items()}


def test_only_hosts_are_asked_and_shown_in_a_range_that_covers_more(deployment: Deployment) -> None:
    first, second, third, fourth = deployment.hosts
    assert deployment.fetch(only_hosts=[first, third]).success
    assert deployment.asked == {first, third}
    assert deployment.statuses() == {
        first: "MATERIALIZED",
        second: "MISSING",
        third: "MATERIALIZED",
        fourth: "MISSING",
    }

    # Dagster takes for failed what a failed run says nothing about: what is whole, the run names.
    deployment.network.faults.set_host(fourth, HostDown())
    assert not deployment.fetch(only_hosts=[fourth], **NO_RETRIES).success
    assert deployment.statuses() == {
        first: "MATERIALIZED",
        second: "FAILED",
        third: "MATERIALIZED",
        fourth: "FAILED",
    }


def test_a_host_of_which_only_the_failed_are_fetched_is_not_shown_done(deployment: Deployment) -> None:
    assert deployment.fetch(mode="failed").success
    assert deployment.asked == set()
    assert set(deployment.statuses().values()) == {"MISSING"}


def test_only_dids_are_fetched_until_a_purge_forgets_the_run(deployment: Deployment) -> None:
    directory = StudyStorage(deployment.study.root).read(study_files.DIRECTORY_KEY)
    did, host = directory.filter(state="resolved").select("did", "pds_host").row(0)
    named = deployment.fetch(only_dids=[f" {did} "])
    assert named.success
    assert [request.did for request in deployment.network.requests.all(path=GET_REPO)] == [did]
    assert {name for name, status in deployment.statuses().items() if status == "MATERIALIZED"} == {host}
    again = deployment.fetch(only_dids=[did])
    assert again.success
    assert deployment.network.requests.count(path=GET_REPO) == 1
    other = deployment.fetch(only_hosts=[host])

    tombstones = bury(StudyStorage(deployment.study.root), [did], [], datetime.now(UTC))
    forget_purged(deployment.instance, deployment.study, tombstones)
    assert {run.run_id for run in deployment.instance.get_runs()} == {other.run_id}


def test_events_say_how_far_it_is_and_how_a_host_did_and_name_no_account(deployment: Deployment) -> None:
    result = deployment.fetch()
    observations = deployment.instance.fetch_observations(REPOS, limit=10).records
    told = numbers(observations[0].asset_observation)
    assert told["progress/accounts_done"] == told["progress/accounts_total"] == 55
    assert told["progress/hosts_done"] == 4
    assert told["progress/megabytes"] > 1
    assert str(told["progress"]).startswith("55 of 55 accounts, in ")

    records = deployment.instance.fetch_materializations(REPOS, limit=100).records
    hosts = [numbers(record.asset_materialization) for record in records]
    assert len(hosts) == 4
    assert len({tuple(host) for host in hosts}) == 1
    for host in hosts:
        states = host["accounts_complete"] + host["accounts_not_active"] + host["accounts_failed"]
        assert host["accounts"] == host["run_accounts"] == states
        assert host["run_requests"] >= host["run_accounts"]
        assert host["run_requests_per_second"] >= host["run_accounts_per_second"] > 0
        assert host["run_megabytes_received"] > host["megabytes_stored"] > 0
        assert Path(str(host["path"])).is_dir()
    assert sum(host["accounts"] for host in hosts) == 55
    requests = sum(host["run_requests"] for host in hosts)
    assert requests == sum(request.host in deployment.hosts for request in deployment.network.requests.all())

    # A refresh that finds nothing new leaves the sums as they are.
    assert deployment.fetch(mode="refresh").success
    latest = deployment.instance.get_latest_materialization_event(REPOS)
    assert latest is not None
    again = numbers(latest.asset_materialization)
    [before] = [host for host in hosts if host["path"] == again["path"]]
    stays = ("dagster/partition_row_count", "accounts", "accounts_complete")
    assert [again[name] for name in stays] == [before[name] for name in stays]
    events = [str(event.to_json()) for event in deployment.instance.all_logs(result.run_id)]  # type: ignore[no-untyped-call]
    assert events
    assert not any("did:plc:" in event for event in events)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"requests_per_second": 0}, "requests_per_second = 0.0: Input should be greater than 0"),
        ({"requests_per_second": 1001}, "requests_per_second = 1001.0: "),
        ({"max_concurrent_pds": 0}, "max_concurrent_pds = 0: "),
        ({"max_run_minutes": 0}, "max_run_minutes = 0.0: "),
        ({"only_hosts": ["pds9.example"]}, "only_hosts = 'pds9.example': "),
        ({"only_dids": ["did:plc:short"]}, "only_dids: entry 1 is no DID of an account (bad_plc)"),
        ({"only_dids": ["did:web:example.org"]}, "only_dids = 'did:web:example.org': is no account of study"),
    ],
)
def test_a_bad_value_is_refused_by_name_before_any_request(
    deployment: Deployment, config: dict[str, Any], told: str
) -> None:
    assert not deployment.fetch(**config).success
    assert told in deployment.failures()
    assert deployment.network.requests.count() == 0
    assert set(deployment.statuses().values()) <= {"FAILED", "MISSING"}


def test_a_mode_that_is_none_never_becomes_a_run(deployment: Deployment) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"config:mode not in enum type .* got everything"):
        deployment.fetch(mode="everything")
    assert set(get_args(AssetFetchSettings.model_fields["mode"].annotation)) == set(FetchMode)


def test_the_whole_job_hands_on_what_it_is_given(deployment: Deployment) -> None:
    host = deployment.hosts[1]
    config = {"requests_per_second": 300, "only_hosts": [host]}
    assert deployment.run_all(fetch_hosts=config, discover_hosts={"max_age_hours": 0})
    assert deployment.asked == {host}
    # Every DID was looked up again, although it had been a moment ago.
    assert deployment.network.requests.count() - deployment.network.requests.count(path=GET_REPO) >= 60
    [run] = deployment.instance.get_runs(dg.RunsFilter(job_name="study_stage_fetch"))
    given = run.run_config["ops"]["study__repos"]["config"]  # type: ignore[index]
    assert {name: given[name] for name in config} == config


@pytest.mark.parametrize(
    ("op", "config", "told"),
    [
        ("fetch_hosts", {"requests_per_second": 0}, "requests_per_second = "),
        ("fetch_hosts", {"only_dids": ["alice"]}, "only_dids: entry 1 is no DID of an account (not_a_did)"),
        ("discover_hosts", {"plc_requests_per_second": 0}, "plc_requests_per_second = 0.0: "),
        ("discover_hosts", {"max_age_hours": -1}, "max_age_hours = -1.0: "),
    ],
)
def test_the_whole_job_refuses_a_bad_value_before_any_request(
    deployment: Deployment, op: str, config: dict[str, Any], told: str
) -> None:
    assert not deployment.run_all(**{op: config})
    assert told in deployment.failures()
    assert deployment.network.requests.count() == 0


def test_hosts_of_the_whole_job_are_those_of_the_directory(deployment: Deployment) -> None:
    assert not deployment.run_all(fetch_hosts={"only_hosts": ["pds1.sandbox.tset"]})
    assert "only_hosts = 'pds1.sandbox.tset': is no host of study; did you mean pds1.sandbox.test?" in (
        deployment.failures()
    )
    assert deployment.asked == set()


def test_defaults_are_the_yaml_s_and_what_defines_the_study_is_fixed(tmp_path: Path) -> None:
    processing = {"requests_per_second": 7.5, "max_concurrent_pds": 3, "max_run_minutes": 90, "workers": 1}
    study = sandbox_study(tmp_path, processing=processing, network={"directory_max_age_hours": 12})
    fetch = fetch_settings_class(study, AssetFetchSettings)()
    assert fetch.model_dump() == {
        "mode": "unsettled",
        "only_hosts": [],
        "only_dids": [],
        "max_concurrent_pds": 3,
        "requests_in_flight": 4,
        "requests_per_second": 7.5,
        "max_retries": 3,
        "max_run_minutes": 90,
    }
    assert fetch.over(study.processing) == study.processing
    directory = directory_settings_class(study)()
    assert directory.model_dump() == {"max_age_hours": 12, "plc_requests_per_second": 1000}
    assert directory.over(study.network) == study.network
    fields = {**type(fetch).model_fields, **type(directory).model_fields}
    assert all((field.description or "").endswith(".") for field in fields.values())
    assert "Above 0, at most 1000." in str(fields["requests_per_second"].description)
