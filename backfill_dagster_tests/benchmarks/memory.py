"""Memory: what a worker and its parent hold, whatever the size and the number of repositories; and how many files."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.workers import worker_pool
from backfill_dagster_tests.benchmarks.generated_repos import large_repo, small_repos
from backfill_dagster_tests.benchmarks.huge_repo import huge_repo
from backfill_dagster_tests.benchmarks.measure import (
    ROOT,
    Cell,
    Goal,
    Report,
    peak_resident,
    run_command,
    run_fresh,
)
from backfill_dagster_tests.benchmarks.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo
    from backfill_dagster_tests.benchmarks.measure import Options

LARGE = 200_000
CROWDS = (1_000, 10_000, 50_000)
# About ten records each: of most accounts there is little, and it is their number that is to cost nothing.
_CROWD_MEDIAN = 6
_NETWORK = SandboxSettings(seed=1, accounts=1_000, hosts=10, records=20)
_MB = 10**6
STAGES: tuple[Literal["pack", "records", "tables"], ...] = ("pack", "records", "tables")
_COLUMNS = ("what", "peak RSS MB", "of it anonymous MB", "CPU s", "wall s")


def run(options: Options) -> list[Report]:
    """Measure one large repository, a huge one, many small ones, and a job of Dagster's."""
    return [
        _one_repo(options.folder, large_repo(options.folder, LARGE), 400),
        _one_repo(options.folder, run_fresh(huge_repo, options.folder).result, 700),
        *_crowds(options.folder),
        _dagster_job(options.folder / "job"),
    ]


def _one_repo(folder: Path, repo: SignedRepo, limit: float) -> Report:
    """Run the stages on one repository, each in a worker of its own."""
    rows: list[list[Cell]] = []
    for stage in STAGES:
        done = run_fresh(run_stage, folder / f"one-{repo.records}", repo, stage, polars_threads=None)
        anonymous = max(peaks.anonymous for peaks in done.children)
        rows.append([f"stage: {stage}", done.result / _MB, anonymous / _MB, done.cpu, done.wall])
    most = max(peak for _, peak, *_ in rows if isinstance(peak, float))
    size = repo.car.stat().st_size / _MB
    goal = Goal(f"MB in a worker, {repo.records:,} records in {size:,.0f} MB", limit, False, most)
    return Report(
        f"Memory, one repository of {repo.records:,} records, {size:,.0f} MB", _COLUMNS, rows, [goal], _NOTES
    )


_NOTES = (
    "Peaks are the kernel's high-water marks. Mapped pages of the file count in them until they are given back.",
)


def run_stage(folder: Path, repo: SignedRepo, stage: Literal["pack", "records", "tables"]) -> int:
    """Run one stage of a repository's study, which those before it have left behind; returns the worker's peak."""
    with worker_pool(1) as pool:
        getattr(Stages.of(folder, [repo], pool, keep=stage != "pack"), stage)()
        return pool.submit(peak_resident).result()


def _crowds(folder: Path) -> list[Report]:
    """Run small repositories in ever greater number through two workers."""
    repos = small_repos(folder / "crowd", max(CROWDS), median=_CROWD_MEDIAN)
    rows: list[list[Cell]] = []
    files: list[list[Cell]] = []
    workers: list[float] = []
    for accounts in CROWDS:
        own = folder / f"crowd-{accounts}"
        packed = run_fresh(pack_crowd, own, repos[:accounts], polars_threads=None)
        # Without what the benchmark alone holds of all repositories.
        done = run_fresh(run_crowd, own, repos[0], polars_threads=None)
        records = sum(repo.records for repo in repos[:accounts])
        children = [*packed.children, *done.children]
        workers.append(max(peaks.resident for peaks in children) / _MB)
        parent = [peak / _MB for peak in done.result.parent]
        cpu, wall = packed.cpu + done.cpu, packed.wall + done.wall
        rows.append([accounts, records, workers[-1], *parent, cpu, wall])
        files.append([accounts, *(done.result.files[kind] for kind in _KINDS), done.result.files.total()])
    growth, parent_peak = workers[-1] / workers[0], max(parent)
    goals = [
        Goal(f"times the worker's memory, {CROWDS[-1]:,} accounts to {CROWDS[0]:,}", 1.2, False, growth),
        Goal(f"MB in the parent without Dagster, {CROWDS[-1]:,} accounts", 350, False, parent_peak),
    ]
    after = (f"parent MB after {stage}" for stage in ("start", *_AFTER_PACK))
    columns = ("accounts", "records", "worker MB", *after, "CPU s", "wall s")
    return [
        Report("Memory, many small repositories, two workers", columns, rows, goals, _NOTES),
        Report("Files of many small repositories of one host", ("accounts", *_KINDS, "all"), files),
    ]


_AFTER_PACK = ("records", "tables", "accounts")
# Of what a study stores, by folder.
_KINDS = ("packs", "records", "tables", "undated", "other")


@dataclass(frozen=True, slots=True)
class Crowd:
    """What many repositories took: the parent's peak in bytes up to each stage's end, and files by kind."""

    parent: list[int]
    files: Counter[str]


def pack_crowd(folder: Path, repos: Sequence[SignedRepo]) -> None:
    """Verify and pack repositories with two workers."""
    with worker_pool(2) as pool:
        Stages.of(folder, repos, pool).pack()


def run_crowd(folder: Path, repo: SignedRepo) -> Crowd:
    """Run the other stages with two workers each, on repositories that are packed; one of them begins the study."""
    parent = [peak_resident()]
    for stage in _AFTER_PACK:
        with worker_pool(2) as pool:
            stages = Stages.of(folder, [repo], pool, keep=True, processing={"workers": 2})
            getattr(stages, stage)()
        parent.append(peak_resident())
    root = stages.study.root
    kinds = {"repos": "packs", "records": "records", "tables": "tables", "undated": "undated"}
    paths = (path.relative_to(root) for path in root.rglob("*.parquet"))
    return Crowd(parent, Counter(kinds.get(path.parts[0], "other") for path in paths))


def _dagster_job(folder: Path) -> Report:
    """Run a study's job as the command line does; its process is the parent of the workers."""
    configs = folder / "configs"
    configs.mkdir(parents=True)
    (folder / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with SandboxNetwork(_NETWORK) as network:
        study = {
            "name": "job",
            "source": {"type": "inline", "dids": list(network.dids)},
            "storage": {"path": str(folder / "data")},
            "processing": {"requests_per_second": 500, "workers": 2},
            "automation": {"on_new_data": False},
            "network": {
                "plc_url": network.plc_url,
                "plc_requests_per_second": 1000,
                "connect_to": network.connect_to,
            },
        }
        (configs / "job.yaml").write_text(yaml.safe_dump({"backfill": study}))
        environment = {**os.environ, "DAGSTER_HOME": str(folder), "BACKFILL_CONFIGS": str(configs)}
        dagster = str(Path(sys.executable).with_name("dagster"))
        with (folder / "run.log").open("wb") as log:
            command = [dagster, "job", "execute", "-m", "backfill_dagster", "-j", "job"]
            done = run_command(command, environment, folder, log)
    worker = max(done.children, key=lambda peaks: peaks.resident)
    rows: list[list[Cell]] = [
        [
            "parent: dagster job execute",
            done.own.resident / _MB,
            done.own.anonymous / _MB,
            done.cpu,
            done.wall,
        ],
        ["largest worker", worker.resident / _MB, worker.anonymous / _MB, None, None],
    ]
    goal = Goal("MB in the parent, with Dagster", 350, False, done.own.resident / _MB)
    title = f"Memory, a job of Dagster's with {_NETWORK.accounts:,} accounts on {_NETWORK.hosts} hosts"
    return Report(title, _COLUMNS, rows, [goal], _NOTES)
