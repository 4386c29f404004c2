"""Storage that takes no more: the run ends with one clear message, nothing is torn, and the next one goes on."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.study import Study
from backfill_dagster.errors import StorageError
from backfill_dagster.repos.blocks_file import BLOCKS_SCHEMA
from backfill_dagster.storage import RowGroupWriter, StudyStorage
from backfill_dagster.stores.local import HEADROOM_BYTES
from backfill_dagster_tests.crash.command import STUDY
from backfill_dagster_tests.crash.job import run_job
from backfill_dagster_tests.crash.runs import CrashRun
from backfill_dagster_tests.crash.scenario import PERIOD, PROCESSING, SETTINGS
from backfill_dagster_tests.instances import local_instance
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox, sandbox_study, table_hashes


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Have every write beyond so many bytes fail, in this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    _set_largest_file(size, hard)
    try:
        yield
    finally:
        _set_largest_file(soft, hard)


def _set_largest_file(soft: int, hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Workers have the limits of the process that they are forked off, which is started anew for the next of them.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


ONE_PACK = {"processing": {**PROCESSING, "batch_size": 100}}


def study_in(folder: Path, **parts: object) -> Study:
    folder.mkdir(exist_ok=True)
    return sandbox_study(folder, STUDY, SETTINGS, **{"processing": PROCESSING, "time_range": PERIOD, **parts})


def run_all(study: Study) -> None:
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    pipeline.build_tables(study)


def check_nothing_is_torn(study: Study) -> None:
    CrashRun(study.root.parent, study, "collect").check_after_kill()
    assert not (study.root / ".scratch").exists() or list((study.root / ".scratch").iterdir()) == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where each table has its rows, in bytes that depend on nothing but them."""
    study = study_in(tmp_path_factory.mktemp("undisturbed"))
    run_all(study)
    return table_hashes(study)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of its own, with so many kilobytes before it counts as full, that can be made larger."""
    mounted = tmp_path / "disk"
    mounted.mkdir()

    def resize(kilobytes: int) -> Path:
        remount = ["-o", "remount"] if os.path.ismount(mounted) else []
        command = [
            "mount",
            *remount,
            "-t",
            "tmpfs",
            "-o",
            f"size={kilobytes + HEADROOM_BYTES // 1024}k",
            "tmpfs",
            str(mounted),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small disk cannot be mounted: {error}")
        return mounted

    yield resize
    if os.path.ismount(mounted):
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_a_frame_that_does_not_fit_leaves_what_was_there(tmp_path: Path) -> None:
    storage = StudyStorage(tmp_path)
    old, new = (pl.DataFrame({"a": [start + n for n in range(5000)]}) for start in (0, 10**6))
    size = storage.write("new.parquet", new).bytes
    storage.write("x.parquet", old)
    for limit in (0, 1, size // 2, size - 9, size - 1):
        with no_file_larger_than(limit), pytest.raises(StorageError, match=r"x\.parquet cannot be written"):
            storage.write("x.parquet", new)
        assert storage.read("x.parquet").equals(old)
        assert list((tmp_path / ".scratch").iterdir()) == []
    with no_file_larger_than(size):
        storage.write("x.parquet", new)
    assert storage.read("x.parquet").equals(new)


def test_a_disk_without_a_byte_left_leaves_what_was_there(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfill_dagster.stores.local.HEADROOM_BYTES", 0)
    storage = StudyStorage(small_disk(256 - HEADROOM_BYTES // 1024) / "study")
    old, new = pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [os.urandom(500) for _ in range(1000)]})
    storage.write("x.parquet", old)
    for rows in (1000, 700, 600):
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            storage.write("x.parquet", new.head(rows))
    assert storage.read("x.parquet").equals(old)
    storage.write("x.parquet", new.head(100))


def test_row_groups_that_do_not_fit_are_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "blocks.parquet"
    columns = {"did": "d", "collection": "c", "rkey": "k", "cid": b"", "block": os.urandom(1000)}
    group = pa.Table.from_pylist([columns] * 50, BLOCKS_SCHEMA)

    def write() -> int:
        with RowGroupWriter(path, BLOCKS_SCHEMA, dictionary=("did",)) as writer:
            for _ in range(3):
                writer.write(group)
        return path.stat().st_size

    size = write()
    for limit in (0, 10, size // 2, size - 9, size - 1):
        with (
            no_file_larger_than(limit),
            pytest.raises(StorageError, match="File too large; allow larger files"),
        ):
            write()


def test_a_run_stops_where_a_file_does_not_fit_and_goes_on_from_there(tmp_path: Path) -> None:
    # Accounts of which a pack is larger than any of their repositories, so that a limit lies between.
    network = sandbox(SETTINGS)
    weights = {
        did: sum(len(str(record.value)) for record in network.truth.records(did)) for did in network.dids
    }
    source = {"type": "inline", "dids": [did for did, weight in weights.items() if weight < 6000]}
    study = study_in(tmp_path / "study", source=source, **ONE_PACK)
    told = []
    for limit in (300, 1000, 4000, 8000, 12500):
        with no_file_larger_than(limit), pytest.raises(StorageError, match="File too large") as raised:
            run_all(study)
        told.append(str(raised.value))
        check_nothing_is_torn(study)
    for place in ("source_", "/documents/", ".car", "/repos/"):
        assert any(place in message for message in told), "\n".join(told)
    run_all(study)
    fresh = study_in(tmp_path / "fresh", source=source, **ONE_PACK)
    run_all(fresh)
    assert table_hashes(study) == table_hashes(fresh)


@pytest.mark.parametrize("kilobytes", [200, 600, 1000])
def test_a_full_disk_ends_the_run_and_a_larger_one_lets_it_go_on(
    undisturbed: dict[str, str],
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    kilobytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the preflight would say is another test's.
    monkeypatch.setattr("backfill_dagster.crawling.ensure_space", lambda *_: None)
    study = study_in(tmp_path / "study", storage={"path": str(small_disk(kilobytes))})
    with pytest.raises(
        StorageError, match="MB are free on its disk; free some space, then run the same again"
    ):
        run_all(study)
    check_nothing_is_torn(study)
    small_disk(64_000)
    run_all(study)
    assert table_hashes(study) == undisturbed


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with local_instance(tmp_path / "instance") as instance:
        yield instance


def failures(instance: dg.DagsterInstance) -> set[str]:
    """Return what failed steps told, of all runs."""
    told = set()
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
            assert entry.dagster_event is not None
            data = entry.dagster_event.step_failure_data.user_failure_data
            told.add(str(data.description) if data else str(entry.dagster_event.step_failure_data.error))
    return told


def test_a_file_where_the_folder_must_be_is_told_once(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    in_the_way = tmp_path / "a file"
    in_the_way.write_text("that is somebody's")
    study_in(tmp_path, storage={"path": str(in_the_way)})
    assert not execute(tmp_path, STUDY, instance)
    [told] = failures(instance)
    assert str(in_the_way) in told
    assert "move the file away that stands where a folder must be" in told
    assert in_the_way.read_text() == "that is somebody's"


def test_a_full_disk_is_told_once_by_the_job(
    instance: dg.DagsterInstance, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    study_in(tmp_path, storage={"path": str(small_disk(60))})
    assert not execute(tmp_path, STUDY, instance)
    [told] = failures(instance)
    assert "free some space" in told


def test_a_folder_without_the_right_to_write_is_told_by_the_command(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.root.parent.mkdir()
    study.root.parent.chmod(0o555)
    # Root may write anywhere, unless it gives that up.
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if without and shutil.which(without[0]) is None:
        pytest.skip("root cannot give up its rights here: there is no setpriv")
    code, said = run_job(tmp_path, *without)
    assert code == 1
    denied = (
        rf"{re.escape(str(study.root))}\S* cannot be written: Permission denied; let this user write there"
    )
    assert re.search(denied, said)
    assert said.count("cannot be written") == 1
    assert "Traceback" not in said
