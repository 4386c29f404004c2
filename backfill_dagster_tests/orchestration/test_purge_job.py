"""Purging by Dagster: the job, what it leaves in the history, and what other jobs do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from backfill_dagster import purging, study_files
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.errors import StorageError
from backfill_dagster_tests.instances import local_instance
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=5, accounts=54, hosts=2, records=25)
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop"}
PROCESSING = {"requests_per_second": 500, "workers": 1}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "instance"
    home.mkdir()
    return home


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with local_instance(home, compute_logs=True) as instance:
        yield instance


@dataclass(frozen=True)
class Ran:
    """A study whose job was run once, and the instance, without files of its own, that it ran on."""

    folder: Path
    study: Study
    instance: dg.DagsterInstance

    @property
    def accounts(self) -> pl.DataFrame:
        return pl.read_parquet(self.study.root / study_files.ACCOUNTS_KEY)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("ran")
    network = sandbox(SETTINGS)
    network.faults.clear()
    # The list has one account twice: events must not repeat what is left out of it.
    study = study_in(folder, source={"type": "inline", "dids": [*network.dids, network.dids[0]]})
    with dg.DagsterInstance.ephemeral() as instance:
        assert execute(folder, "study", instance)
        yield Ran(folder, study, instance)


def history_with(instance: dg.DagsterInstance, needle: str) -> set[str]:
    """Return the jobs with a run whose configuration, tags or events hold a text."""
    return {
        run.job_name
        for run in instance.get_runs()
        for text in (str(run.run_config), str(run.tags), *map(event_text, instance.all_logs(run.run_id)))
        if needle in text
    }


def event_text(entry: dg.EventLogEntry) -> str:
    return str(entry.to_json())  # type: ignore[no-untyped-call]


def study_in(folder: Path, **parts: Any) -> Study:
    small = {"time_range": PERIOD, "processing": PROCESSING, "record_types": ["app.bsky.feed.post"]}
    return sandbox_study(folder, "study", SETTINGS, **{**small, **parts})


def damage_frozen(study: Study) -> Path:
    """Leave a file in a frozen build of the study that is no table."""
    damaged = study.root / "frozen/v1/tables/posts/part.parquet"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no table")
    return damaged


def latest(instance: dg.DagsterInstance, job: str) -> dg.DagsterRun:
    return instance.get_runs(dg.RunsFilter(job_name=job), limit=1)[0]


def told(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run.run_id))


def output_metadata(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dict[str, Any]:
    [entry] = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_OUTPUT)
    assert entry.dagster_event is not None
    return {name: value.value for name, value in entry.dagster_event.step_output_data.metadata.items()}


def failure(instance: dg.DagsterInstance, job: str) -> str:
    [entry] = instance.all_logs(latest(instance, job).run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    assert entry.dagster_event is not None
    data = entry.dagster_event.step_failure_data.user_failure_data
    assert data is not None
    return str(data.description)


def test_the_job_removes_accounts_from_files_and_history_and_names_nobody(ran: Ran) -> None:
    instance = ran.instance
    [did] = ran.accounts.filter(did=sandbox(SETTINGS).dids[0], state="complete")["did"]
    discovered = latest(instance, "study_stage_discover")
    assert history_with(instance, did) == set()
    # As the message of an error might: the run that holds it goes, and with it all of its events.
    instance.report_engine_event(f"somebody said {did}", discovered)
    assert history_with(instance, did) == {"study_stage_discover"}

    listed = ran.folder / "withdrawn.txt"
    listed.write_text(did)
    assert execute(ran.folder, "study_purge", instance, {"file": str(listed)})
    assert files_with(ran.folder, did) == ["study.yaml", "withdrawn.txt"]
    assert history_with(instance, did) == set()
    assert instance.get_run_by_id(discovered.run_id) is None

    run = latest(instance, "study_purge")
    metadata = output_metadata(instance, run)
    assert (metadata["accounts"], metadata["removed_runs"], metadata["removed_directory"]) == (1, 1, 1)
    assert metadata["removed_tables"] > 0
    assert metadata["still_named_in_the_yaml"] == 1
    assert "Purged 1 accounts" in told(instance, run)
    check = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [dg.AssetCheckKey(dg.AssetKey(["study", "accounts"]), "records_reconcile")]
    )
    assert all(record.event.asset_check_evaluation.passed for record in check.values())  # type: ignore[union-attr]
    for asset in ("source_dids", "directory"):
        event = instance.get_latest_materialization_event(dg.AssetKey(["study", asset]))
        assert event is not None
        assert event.run_id == run.run_id


def test_the_next_run_of_the_study_finishes_a_purge_and_purges_what_is_gone(ran: Ran) -> None:
    did = ran.accounts.filter(pl.col("records_kept") > 3)["did"][-1]
    gone = ran.accounts.filter(state="tombstoned")["did"][0]

    def fail(_: Study) -> None:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError):
        purging.purge(ran.study, dids=[did], rebuild=fail)
    assert files_with(ran.study.root, did)
    study_in(ran.folder, purge_deleted_after_days=0)
    damaged = damage_frozen(ran.study)
    assert execute(ran.folder, "study_rebuild", ran.instance)
    # That waits for the researcher, and nothing waits for it.
    assert "A frozen build is not purged" in told(ran.instance, latest(ran.instance, "study_rebuild"))
    damaged.unlink()
    assert purging.purge(ran.study).removed == {"frozen": 0}
    assert not purging.is_purge_unfinished(ran.study)
    assert files_with(ran.study.root, did) == files_with(ran.study.root, gone) == []


def test_a_frozen_file_that_cannot_be_read_fails_the_purge_that_names_it(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    study = study_in(tmp_path)
    damaged = damage_frozen(study)
    (tmp_path / "withdrawn.txt").write_text("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
    assert not execute(tmp_path, "study_purge", instance, {"file": str(tmp_path / "withdrawn.txt")})
    said = failure(instance, "study_purge")
    assert f"{damaged} cannot be read" in said
    assert "run study_purge again" in said
    damaged.unlink()
    assert execute(tmp_path, "study_purge", instance)
    assert not purging.is_purge_unfinished(study)


def test_what_is_named_in_a_run_s_configuration_is_forgotten_by_the_next_purge(
    instance: dg.DagsterInstance, home: Path, tmp_path: Path
) -> None:
    study_in(tmp_path)
    first, second = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb"
    uri = f"at://{second}/app.bsky.feed.post/3l5uvwqz2fk2k"
    assert execute(tmp_path, "study_purge", instance, {"dids": [first], "uris": [uri]})
    run = latest(instance, "study_purge")
    assert f"dagster run delete {run.run_id}" in told(instance, run)
    assert output_metadata(instance, run)["this_run"]
    assert files_with(home, first)
    assert files_with(home, uri)

    (tmp_path / "withdrawn.txt").write_text(second)
    assert execute(tmp_path, "study_purge", instance, {"file": str(tmp_path / "withdrawn.txt")})
    quiet = latest(instance, "study_purge")
    assert output_metadata(instance, quiet)["removed_runs"] == 1
    assert files_with(home, first) == files_with(home, uri) == files_with(home, second) == []

    # A captured output that names somebody goes alone: its run may hold what cannot be had again.
    [captured] = home.rglob(f"{quiet.run_id}/**/*.err")
    captured.write_text(f"somebody printed {first}")
    assert execute(tmp_path, "study_purge", instance, {"file": str(tmp_path / "withdrawn.txt")})
    counts = output_metadata(instance, latest(instance, "study_purge"))
    assert (counts["removed_runs"], counts["removed_outputs_of_runs"]) == (0, 1)
    assert files_with(home, first) == []
    assert instance.get_run_by_id(quiet.run_id) is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "nothing to purge is named"),
        ({"dids": ["did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "at://did:plc:x"]}, "dids[1] is not the DID"),
        ({"uris": ["https://bsky.app"]}, "uris[0] is not an AT-URI"),
        ({"file": "nowhere.txt"}, "nowhere.txt: there is no such file"),
    ],
)
def test_bad_input_ends_the_job_with_one_message_and_changes_nothing(
    instance: dg.DagsterInstance, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    study = study_in(tmp_path)
    assert not execute(tmp_path, "study_purge", instance, config)
    assert message in failure(instance, "study_purge")
    assert not (study.root / "purged.parquet").exists()
