"""Kills a run at a chosen failpoint or moment, runs the same command again, and checks what must hold.

What must hold after a kill, before anything else runs: no file under its final name is torn, and every pack has all
of its blocks. After the next, undisturbed run: tables and accounts equal those of a run that was never killed, the
sums reconcile, no account that was settled when the run was killed was fetched again, and nothing is left over.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
import polars as pl
from polars.testing import assert_frame_equal

from backfill_dagster import study_files
from backfill_dagster.monitoring.audit_log import FOLDER as RUNS_FOLDER
from backfill_dagster.monitoring.audit_log import AuditLog, RunStatus
from backfill_dagster.monitoring.outbox import Outbox
from backfill_dagster.records.tables import TABLES
from backfill_dagster.report.page import REPORT_KEY
from backfill_dagster.repos.packs import PACK_SCHEMA, pack_keys, read_ledger
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.tables.accounts import unreconciled
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster_tests.crash.command import STUDY
from backfill_dagster_tests.crash.handed_over import handed_over
from backfill_dagster_tests.crash.launcher import Command, Launcher, Started
from backfill_dagster_tests.crash.scenario import SETTINGS, crash_study, earlier_run, leave_scratch, to_purge
from backfill_dagster_tests.crash.shared import check_whole, shared_bytes
from backfill_dagster_tests.purge.stored_bytes import files_with
from backfill_dagster_tests.studies import sandbox

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study

PATIENCE_SECONDS = 120
# Of a row, what depends on when it was made.
CLOCK_COLUMNS = ["snapshot_fetched_at", "resolved_at", "state_since"]
# Of a study's own files, those that an undisturbed run may leave, and those that it must.
MUST_STAY = {"source_dids", "source_rejects", "directory", "accounts", "audit_log"}
MAY_STAY = {
    *(*MUST_STAY, "purged", "engaged_accounts", "engaged_posts", "user_metadata", "run_metadata"),
    *("account_history", "attrition", "deletion_rates", "directory_history", "record_changes"),
    "rehydration",
}

Task = Literal["collect", "purge", "parts"]


@dataclass(frozen=True, slots=True)
class Failpoint:
    """A moment of a run: `<role> <primitive> <place> < <caller> <before|after>`, and its number in its process."""

    name: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


class CrashLab:
    """A task, the data that it begins with, and what an undisturbed run makes of them."""

    def __init__(self, folder: Path, task: Task, begin: Path, launcher: Launcher) -> None:
        self.task = task
        self._launcher = launcher
        self._folder = folder
        self._begin = begin
        folder.mkdir(parents=True)
        undisturbed = self.new_run("undisturbed")
        started = time.monotonic()
        undisturbed.run(lock=True)
        self.seconds = time.monotonic() - started
        self.passed = undisturbed.passed()
        self.reference = undisturbed.study

    @classmethod
    def collecting(cls, folder: Path, launcher: Launcher) -> CrashLab:
        """Make the lab of a collection, after an earlier one with other settings."""
        before = folder / "before"
        before.mkdir(parents=True)
        return cls(folder / "collect", "collect", earlier_run(before), launcher)

    @classmethod
    def purging(cls, folder: Path, collected: CrashLab, launcher: Launcher) -> CrashLab:
        """Make the lab of a purge of what was collected."""
        before = folder / "before_purge"
        shutil.copytree(collected.reference.root.parent, before)
        leave_scratch(before / STUDY)
        return cls(folder / "purge", "purge", before, launcher)

    @classmethod
    def in_parts(cls, folder: Path, launcher: Launcher) -> CrashLab:
        """Make the lab of a collection that asks for less than repositories, and begins with nothing."""
        nothing = folder / "nothing"
        nothing.mkdir(parents=True)
        return cls(folder / "parts", "parts", nothing, launcher)

    def new_run(self, name: str) -> CrashRun:
        """Return a run that begins with a copy of the common data."""
        folder = self._folder / name
        folder.mkdir()
        study = crash_study(folder)
        shutil.copytree(self._begin, study.root.parent)
        return CrashRun(folder, study, self.task, self._launcher)

    def failpoints(self, *parts: str) -> list[Failpoint]:
        """Return the failpoints that the undisturbed run passed and whose name has all of these parts."""
        return [Failpoint(name) for name in sorted(self.passed) if all(part in f" {name} " for part in parts)]


class CrashRun:
    """One study's folder, on which the command runs, is killed, and runs again."""

    def __init__(self, folder: Path, study: Study, task: Task, launcher: Launcher | None = None) -> None:
        self.folder = folder
        self._launcher = launcher or Launcher()
        self.study = study
        self.task = task
        self._storage = StudyStorage(study.root)
        self._log = folder / "failpoints.log"

    def start(self, kill_at: Failpoint | None = None, *, alone: bool = False, lock: bool = False) -> Started:
        """Start the command in a process group of its own; all of it is killed there, or one process alone."""
        for left in (self._log, self.folder / "requests.json"):
            left.unlink(missing_ok=True)
        environment = {
            "FAILPOINTS_ROOT": str(self.study.root.parent),
            "FAILPOINTS_LOG": str(self._log),
            **({} if kill_at is None else {"FAILPOINTS_KILL_AT": str(kill_at)}),
            **({"FAILPOINTS_ALONE": "1"} if alone else {}),
        }
        return self._launcher.start(Command(str(self.folder), self.task, lock, environment))

    def run(self, kill_at: Failpoint | None = None, *, lock: bool = False) -> bool:
        """Run the command to its end; say whether it was killed. Any other failure is an error."""
        process = self.start(kill_at, lock=lock)
        code = process.wait(PATIENCE_SECONDS)
        wait_for_group(process.pid)
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"the run ended with {code}:\n{self.output()}")
        return code != 0

    def run_without_worker(self, lost_at: Failpoint) -> int:
        """Run the command while a worker is killed; return its exit code."""
        process = self.start(lost_at, alone=True)
        code = process.wait(PATIENCE_SECONDS)
        wait_for_group(process.pid)
        return code

    def kill_after(self, seconds: float, *, whole_group: bool) -> bool:
        """Run the command and kill it after so long, with its workers or alone; say whether it was killed."""
        process = self.start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        return process.wait(PATIENCE_SECONDS) != 0

    def output(self) -> str:
        """Return what the latest run said."""
        return (self.folder / "output.txt").read_text()

    def passed(self) -> dict[str, int]:
        """Return the failpoints that the latest run passed, and how often in the process that did so most."""
        found: dict[str, int] = {}
        for line in self._log.read_text().splitlines():
            name, _, number = line.rpartition(" ")
            found[name] = max(found.get(name, 0), int(number))
        return found

    def settled(self) -> set[str]:
        """Return the accounts that need no fetching any more."""
        return set(read_ledger(self._storage).filter(pl.col("outcome") != "failed")["did"])

    def check_after_kill(self) -> None:
        """Check that nothing is torn."""
        for path in self.study.root.rglob("*.parquet"):
            if ".scratch" not in path.parts:
                pl.read_parquet(path, glob=False, hive_partitioning=False)
        if self._storage.exists(REPORT_KEY):
            assert self._storage.path(REPORT_KEY).read_text(encoding="utf-8").endswith("</html>\n")
        check_whole(self.study)
        self._check_packs()

    def check_after_next_run(self, settled: set[str], reference: Study) -> None:
        """Check what the run after a killed one left; `settled` is what the killed one had achieved."""
        asked = set(orjson.loads((self.folder / "requests.json").read_bytes()))
        assert not asked & settled, f"fetched again: {sorted(asked & settled)}"
        assert table_files(self.study) == table_files(reference)
        for table in TABLES:
            assert_frame_equal(read_rows(self.study, table), read_rows(reference, table))
        assert derived_rows(self.study) == derived_rows(reference)
        assert handed_over(self.study) == handed_over(reference)
        assert set(handed_over(self.study).values()) <= {1}
        if self.task != "purge":
            assert shared_bytes(self.study) == shared_bytes(reference)
        check_whole(self.study)
        for key in (study_files.SOURCE_KEY, study_files.DIRECTORY_KEY, study_files.ACCOUNTS_KEY):
            found, expected = (
                StudyStorage(study.root).read(key).drop(CLOCK_COLUMNS, strict=False)
                for study in (self.study, reference)
            )
            assert_frame_equal(found, expected)
        assert self.task != "collect" or self._storage.exists(REPORT_KEY)
        assert unreconciled(self._storage.read(study_files.ACCOUNTS_KEY)).is_empty()
        if self.task == "purge":
            [purged], _ = to_purge(sandbox(SETTINGS))
            assert files_with(self.study.root, purged) == []
        self._check_nothing_left()
        self._check_frozen(reference)
        self._check_logs()

    def _check_frozen(self, reference: Study) -> None:
        told, found = check_frozen(self._storage, 1)
        assert found == []
        assert told.keys() == check_frozen(StudyStorage(reference.root), 1)[0].keys()

    def _check_logs(self) -> None:
        *earlier, last = AuditLog(self._storage).read()["status"]
        assert last == RunStatus.SUCCESS
        assert set(earlier) <= {RunStatus.SUCCESS, RunStatus.DIED}
        assert self._storage.keys(RUNS_FOLDER, "*") == []
        assert Outbox(self._storage).pending() == []

    def _check_packs(self) -> None:
        for host, _, key in pack_keys(self._storage):
            files = self._storage.scan([key], PACK_SCHEMA).collect()["blocks_files"].to_list()[0]
            for file in files:
                path = self._storage.path(f"repos/{partition_folder(host)}/{file['name']}")
                assert path.stat().st_size == file["bytes"]
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]

    def _check_nothing_left(self) -> None:
        self._check_packs()
        assert not list((self.study.root / ".scratch").iterdir())
        packs = {pack for _, pack, _ in pack_keys(self._storage)}
        for folder in ("repos", "records"):
            for path in (self.study.root / folder).rglob("*.parquet"):
                assert path.name[:20] in packs, f"{path} belongs to no pack"
        assert MUST_STAY <= {path.stem for path in self.study.root.glob("*.parquet")} <= MAY_STAY


def read_rows(study: Study, table: str) -> pl.DataFrame:
    """Return all rows of a table, dated or not, sorted; an empty frame if the study has no such table."""
    storage = StudyStorage(study.root)
    keys = [*storage.keys(f"tables/{table}"), *storage.keys(f"undated/{table}")]
    if not keys:
        return pl.DataFrame()
    rows = pl.concat([storage.read(key) for key in keys])
    assert not rows["uri"].is_duplicated().any()
    return rows.sort("uri")


def derived_rows(study: Study) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of all files that are made of the tables."""
    found = [*(study.root / "derived").rglob("*.parquet"), *study.root.glob("engaged_*.parquet")]
    return {
        str(path.relative_to(study.root)): pl.read_parquet(path, hive_partitioning=False).rows()
        for path in found
    }


def table_files(study: Study) -> list[str]:
    """Return the files and folders that a user of the study reads."""
    found = [path for folder in ("tables", "undated") for path in (study.root / folder).rglob("*")]
    return sorted(str(path.relative_to(study.root)) for path in found)


def wait_for_group(group: int, seconds: float = 20) -> None:
    """Wait until no process of a group is alive; a worker outlives its parent by a moment."""
    deadline = time.monotonic() + seconds
    while group_members(group):
        assert time.monotonic() < deadline, f"processes {group_members(group)} of group {group} live on"
        time.sleep(0.02)


def group_members(group: int) -> list[int]:
    """Return the living processes of a group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # gone meanwhile
            if int(fields[2]) == group and fields[0] not in ("Z", "X"):
                found.append(int(folder.name))
    return found
