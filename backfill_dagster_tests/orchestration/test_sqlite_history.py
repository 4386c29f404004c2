"""The history whose files stay open, against Dagster's own storage of the same files."""

import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from backfill_dagster.orchestration import sqlite_history
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.instances import local_instance
from backfill_dagster_tests.purge.stored_bytes import files_with

KEY = dg.AssetKey("thing")


@dg.asset(key=KEY, check_specs=[dg.AssetCheckSpec("good", asset=KEY)])
def thing() -> dg.MaterializeResult:  # type: ignore[type-arg]
    return dg.MaterializeResult(
        metadata={"rows": 7}, check_results=[dg.AssetCheckResult(check_name="good", passed=True)]
    )


def own_instance(home: Path) -> dg.DagsterInstance:
    """An instance with Dagster's own storage, of the same files."""
    home.mkdir(exist_ok=True)
    return dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}})


def is_kept_open(instance: dg.DagsterInstance) -> bool:
    return type(instance.event_log_storage).__module__ == sqlite_history.__name__


def run(instance: dg.DagsterInstance) -> str:
    result = dg.materialize([thing], instance=instance)
    assert result.success
    return result.run_id


def history(instance: dg.DagsterInstance) -> dict[str, list[str]]:
    """What an instance tells of each run, and of the asset."""
    events = {
        run.run_id: [str(entry.to_json()) for entry in instance.all_logs(run.run_id)]  # type: ignore[no-untyped-call]
        for run in instance.get_runs()
    }
    records = instance.fetch_materializations(KEY, limit=100).records
    check = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [dg.AssetCheckKey(KEY, "good")]
    )
    return {
        **events,
        "materializations": [record.run_id for record in records],
        "check": [record.run_id for record in check.values()],
        "asset": [str(instance.get_latest_materialization_event(KEY))],
    }


def tables(file: Path) -> tuple[set[tuple[str, str]], str, str]:
    with closing(sqlite3.connect(file)) as connection:
        made = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        revision = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        return set(made), str(revision), str(connection.execute("PRAGMA journal_mode").fetchall())


def open_files(folder: Path) -> list[str]:
    links = (Path(f"/proc/self/fd/{path.name}") for path in Path("/proc/self/fd").iterdir())
    targets = (str(link.readlink()) for link in links if link.is_symlink())
    return [target for target in targets if target.startswith(str(folder))]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    assert open_files(tmp_path / "home") == []


def test_either_storage_tells_what_the_other_was_told_while_both_are_open(home: Path) -> None:
    with local_instance(home) as kept, own_instance(home) as own:
        assert is_kept_open(kept)
        assert not is_kept_open(own)
        for instance in (kept, own, kept, own):
            latest = run(instance)
            told = history(kept)
            assert history(own) == told
            assert told["check"] == [latest]
            assert told["materializations"][0] == latest
            assert len(told[latest]) > 10
        kept.delete_run(latest)
        assert history(own) == history(kept)
        assert latest not in history(own)


@pytest.mark.parametrize("watching", [local_instance, own_instance])
def test_whoever_watches_a_run_is_told_of_its_events_as_they_come(
    home: Path, watching: Callable[[Path], dg.DagsterInstance]
) -> None:
    """As the UI does."""
    with local_instance(home) as writing, watching(home) as reading:
        made = dg.DagsterRun(job_name="job", run_id=str(uuid.uuid4()))
        writing.report_engine_event("before", made)
        told: list[str] = []

        def hear(entry: dg.EventLogEntry, _cursor: str) -> None:
            told.append(entry.message)

        reading.watch_event_logs(made.run_id, None, hear)
        writing.report_engine_event("after", made)
        deadline = time.monotonic() + 10
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert told == ["before", "after"]
        reading.end_watch_event_logs(made.run_id, hear)


def test_the_files_are_made_as_dagster_makes_them(home: Path, tmp_path: Path) -> None:
    with local_instance(home) as kept:
        made = [
            f"history/runs/{run(kept)}.db",
            "history/runs/index.db",
            "history/runs.db",
            "schedules/schedules.db",
        ]
    with own_instance(tmp_path / "own") as own:
        expected = [f"history/runs/{run(own)}.db", *made[1:]]
    for one, other in zip(made, expected, strict=True):
        assert tables(home / one) == tables(tmp_path / "own" / other)


def test_a_file_that_two_make_at_once_holds_what_both_were_told(home: Path) -> None:
    with local_instance(home) as first, local_instance(home) as second:
        runs = [dg.DagsterRun(job_name="job", run_id=str(uuid.uuid4())) for _ in range(6)]
        with ThreadPoolExecutor(2) as threads:
            for made in runs:
                told = [
                    threads.submit(instance.report_engine_event, "told", made) for instance in (first, second)
                ]
                for future in told:
                    future.result()
                assert len(first.all_logs(made.run_id)) == len(second.all_logs(made.run_id)) == 2


def test_of_as_many_runs_as_one_likes_a_few_are_open(home: Path) -> None:
    with local_instance(home) as instance:
        runs = [dg.DagsterRun(job_name="job", run_id=str(uuid.uuid4())) for _ in range(12)]
        for made in runs:
            instance.report_engine_event("told", made)
        assert all(len(instance.all_logs(made.run_id)) == 1 for made in runs)
        # Beside those of runs there is the list of runs.
        assert len({file for file in open_files(home) if file.endswith(".db")}) <= 8 + 1
    assert open_files(home) == []


def test_of_a_run_that_is_deleted_no_byte_is_left_while_the_files_are_open(home: Path) -> None:
    told = "nobody is to know of this"
    with local_instance(home) as instance:
        kept, deleted = (
            instance.add_run(
                dg.DagsterRun(job_name="job", run_id=str(uuid.uuid4()), run_config={"ops": {text: {}}})
            )
            for text in ("anything", told)
        )
        for made in (kept, deleted):
            instance.report_engine_event(told if made is deleted else "anything", made)
        assert files_with(home, told)
        instance.delete_run(deleted.run_id)
        assert files_with(home, told) == []
        assert len(instance.all_logs(kept.run_id)) == 1


def test_a_history_that_is_wiped_begins_anew(home: Path) -> None:
    with local_instance(home) as instance:
        first = run(instance)
        instance.wipe()
        assert instance.get_runs() == []
        assert not (home / "history" / "runs" / f"{first}.db").exists()
        latest = run(instance)
        assert history(instance)["materializations"] == [latest]


def test_the_projects_own_instance_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert is_kept_open(instance)
    assert (tmp_path / ".dagster" / "history" / "runs" / "index.db").exists()
