import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from backfill_dagster.errors import StorageError
from backfill_dagster.storage import StudyStorage, partition_folder, partition_host


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return StudyStorage(tmp_path / "study")


def test_what_is_written_is_read(storage: StudyStorage) -> None:
    frame = pl.DataFrame({"a": [1, 2]})
    stored = storage.write("x/y.parquet", frame)
    assert storage.read("x/y.parquet").equals(frame)
    assert stored.rows == 2
    assert stored.bytes == storage.size("x/y.parquet")


def test_every_file_says_its_schema_version(storage: StudyStorage) -> None:
    storage.write("x.parquet", pl.DataFrame({"a": [1]}), metadata={"more": "told"})
    metadata = pl.read_parquet_metadata(storage.path("x.parquet"))
    assert metadata["schema_version"] == "1"
    assert metadata["more"] == "told"


def test_equal_content_gives_equal_bytes(storage: StudyStorage) -> None:
    frame = pl.DataFrame({"a": list(range(1000)), "b": ["x"] * 1000})
    first = storage.write("one.parquet", frame)
    second = storage.write("two.parquet", frame.clone())
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("key", ["../x", "a/../../x", "", "/etc/passwd", "a//b", "."])
def test_no_key_leaves_the_study(storage: StudyStorage, key: str) -> None:
    with pytest.raises(StorageError):
        storage.path(key)


@pytest.mark.parametrize("host", ["pds.example", "pds.example:8080", "..", "../..", "a/b", "%2e", "x" * 200])
def test_a_host_is_one_folder_and_comes_back(storage: StudyStorage, host: str) -> None:
    folder = partition_folder(host)
    assert "/" not in folder
    assert storage.path(f"repos/{folder}/x").parent.parent == storage.folder / "repos"
    assert partition_host(folder) == host


def test_a_failed_write_leaves_the_old_file(storage: StudyStorage) -> None:
    storage.write("x.parquet", pl.DataFrame({"a": [1]}))
    with pytest.raises(Exception), storage.scratch() as folder:  # noqa: B017, PT012
        (folder / "half").write_bytes(b"PAR1")
        raise RuntimeError
    assert storage.read("x.parquet")["a"].to_list() == [1]
    assert list((storage.folder / ".scratch").iterdir()) == []


def test_a_page_is_written_whole_or_not_at_all(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = storage.write_bytes("page.html", b"<p>old</p>")
    assert (stored.rows, stored.bytes, stored.sha256) == (0, 10, storage.sha256("page.html"))
    written = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        written(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StorageError, match=r"page\.html cannot be written: No space left"):
        storage.write_bytes("page.html", b"<p>new</p>")
    assert storage.path("page.html").read_bytes() == b"<p>old</p>"
    assert list((storage.folder / ".scratch").iterdir()) == []


def test_a_damaged_file_is_named(storage: StudyStorage) -> None:
    storage.write("x.parquet", pl.DataFrame({"a": [1]}))
    storage.path("x.parquet").write_bytes(b"no parquet")
    with pytest.raises(StorageError, match=r"x\.parquet cannot be read"):
        storage.read("x.parquet")


def test_scanning_fills_columns_that_older_files_lack(storage: StudyStorage) -> None:
    storage.write("old.parquet", pl.DataFrame({"a": [1]}))
    storage.write("new.parquet", pl.DataFrame({"a": [2], "b": ["x"]}))
    schema = pl.Schema({"a": pl.Int64(), "b": pl.String()})
    frame = storage.scan(["old.parquet", "new.parquet"], schema).collect()
    assert frame.rows() == [(1, None), (2, "x")]


@pytest.mark.parametrize(
    "root", ["data", "./data", "../own/data", "with space", "~home", "a#b?c", "ünï", "[glob]*", "%41", None]
)
def test_rows_have_the_name_of_their_file_wherever_the_study_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    storage = StudyStorage(tmp_path / "absolute" if root is None else Path(root))
    names = {f"{partition_folder(host)}/a.parquet": host for host in ("pds.test", "pds.test:8080", "ö%41")}
    for number, key in enumerate(names):
        storage.write(key, pl.DataFrame({"a": [number, number]}))
    named = storage.scan_named(names, {"a": pl.Int64()}, "host")
    expected = [(number, host) for number, host in enumerate(names.values()) for _ in range(2)]
    for engine in ("in-memory", "streaming"):
        [frame] = storage.collect([named], names, engine=engine)
        assert sorted(frame.rows()) == expected
    assert storage.scan_named({}, {"a": pl.Int64()}, "host").collect().schema == frame.schema


def test_sweeping_takes_the_scratch_of_the_dead_and_not_of_the_living(storage: StudyStorage) -> None:
    script = (
        "import sys, time; from pathlib import Path; from backfill_dagster.storage import StudyStorage\n"
        f"with StudyStorage(Path({str(storage.folder)!r})).scratch() as f:\n"
        "    (f / 'x').write_text('x'); print(f, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        folder = Path(process.stdout.readline().strip())
        storage.sweep_scratch()
        assert folder.exists()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert folder.exists()
    storage.sweep_scratch()
    assert not folder.exists()


def test_empty_folders_go_and_others_stay(storage: StudyStorage) -> None:
    for key in ("tables/a/m/x.parquet", "tables/a/n/y.parquet", "tables/b/m/z.parquet"):
        storage.write(key, pl.DataFrame({"a": [1]}))
    storage.remove("tables/a/m/x.parquet")
    storage.remove("tables/b/m/z.parquet")
    storage.remove("tables/b/m/z.parquet")
    storage.remove_empty_folders("tables")
    assert storage.folders("tables") == ["a"]
    assert storage.folders("tables/a") == ["n"]
