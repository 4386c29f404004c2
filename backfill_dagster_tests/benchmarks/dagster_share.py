"""What Dagster adds: a study through the one command, against the pipeline's stage functions called one by one.

    python -m backfill_dagster_tests.benchmarks --only dagster_share

Each run is a fresh process on a fresh folder, and counts with the processes that it starts; the sandbox's servers are
in this process and count for neither. Of each run its own start-up is taken off: what it costs to get to the first
request, which for Dagster is what `start_up` measures.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import yaml

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox import population
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.benchmarks.measure import (
    Goal,
    Options,
    Report,
    adopt_orphans,
    orphans_cpu_seconds,
)
from backfill_dagster_tests.benchmarks.start_up import (
    LOOK_SECONDS,
    command,
    environment,
    own_cpu_seconds,
)
from backfill_dagster_tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster_tests.benchmarks.measure import Cell

MOST_SHARE = 0.10


@dataclass(frozen=True, slots=True)
class Case:
    """A study to run, by its network; `even` deals the accounts out evenly, and else most are on few hosts."""

    name: str
    title: str
    network: SandboxSettings
    even: bool = False


_DEMO = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())["backfill"]
CASES = (
    Case("demo", "the demo", SandboxSettings(**_DEMO["network"]["sandbox"])),
    Case(
        "hosts",
        "340 hosts, 3,400 accounts",
        SandboxSettings(seed=1, accounts=3400, hosts=340, records=60),
        even=True,
    ),
    Case(
        "least",
        "340 hosts, one account of a few records each",
        SandboxSettings(seed=1, accounts=340, hosts=340, records=3),
        even=True,
    ),
)


@dataclass(frozen=True, slots=True)
class _Run:
    """CPU seconds of one run: all of it, and up to its first request."""

    total: float
    start_up: float

    @property
    def work(self) -> float:
        """What comes after the start-up."""
        return self.total - self.start_up


def run(options: Options) -> list[Report]:
    """Run every study with and without Dagster, in turns."""
    rows: list[list[Cell]] = []
    goals: list[Goal] = []
    for case in CASES:
        with_dagster, without = _compare(case, options)
        share = statistics.median(a.work / b.work - 1 for a, b in zip(with_dagster, without, strict=True))
        rows.append(
            [
                case.title,
                statistics.median(one.work for one in without),
                statistics.median(one.work for one in with_dagster),
                share,
                statistics.median(one.start_up for one in without),
                statistics.median(one.start_up for one in with_dagster),
            ]
        )
        goals.append(Goal(f"Dagster's share, {case.title}", MOST_SHARE, at_least=False, measured=share))
    columns = ("study, CPU s", "without", "with Dagster", "share", "start-up without", "start-up with")
    return [Report("Dagster's share of the CPU, after start-up", columns, rows, goals)]


def _compare(case: Case, options: Options) -> tuple[list[_Run], list[_Run]]:
    with_dagster: list[_Run] = []
    without: list[_Run] = []
    with _network(case) as network:
        for number in range(options.rounds):
            for is_with in (number % 2 == 0, number % 2 == 1):
                folder = options.folder / "dagster_share"
                shutil.rmtree(folder, ignore_errors=True)
                _write_study(folder, case, network)
                stages = [sys.executable, "-m", __spec__.name, f"configs/{case.name}.yaml"]
                line, runs = (command(case.name), with_dagster) if is_with else (stages, without)
                runs.append(_measure(line, folder, network))
    return with_dagster, without


@contextmanager
def _network(case: Case) -> Iterator[SandboxNetwork]:
    if not case.even:
        with SandboxNetwork(case.network) as network:
            yield network
        return
    hosts = case.network.hosts
    shares = [(number + 1) / hosts for number in range(hosts)]
    with (
        mock.patch.object(population, "_host_shares", return_value=shares),
        SandboxNetwork(case.network) as network,
    ):
        yield network


def _write_study(folder: Path, case: Case, network: SandboxNetwork) -> None:
    """Write what the demo's YAML says, with this network in place of one of its own."""
    (folder / "configs").mkdir(parents=True)
    shutil.copy(ROOT / "dagster.yaml", folder)
    study = {
        **_DEMO,
        "name": case.name,
        "source": {"type": "inline", "dids": list(network.dids)},
        "processing": {"requests_per_second": 500, "max_concurrent_pds": 200},
        "network": {
            "plc_url": network.plc_url,
            "plc_requests_per_second": 1000,
            "connect_to": network.connect_to,
            "retry_base_seconds": 0.1,
        },
    }
    (folder / "configs" / f"{case.name}.yaml").write_text(yaml.safe_dump({"backfill": study}))


def _measure(command_line: list[str], folder: Path, network: SandboxNetwork) -> _Run:
    network.requests.clear()
    adopt_orphans()
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(
            command_line,
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        start_up = None
        while True:
            if start_up is None and network.requests.all():
                start_up = own_cpu_seconds(process.pid)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(LOOK_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or start_up is None:
        raise RuntimeError(f"{command_line} failed:\n{(folder / 'run.log').read_text()[-5000:]}")
    return _Run(usage.ru_utime + usage.ru_stime + orphans_cpu_seconds(process.pid), start_up)


def _stages(path: Path) -> None:
    """Do what the study's job does, without Dagster, and without what it shows of it."""
    # Imported here: the other side of the comparison loads this module as well, and must not pay for it.
    from backfill_dagster import pipeline, study_files
    from backfill_dagster.config.loading import load_study
    from backfill_dagster.records.windows import study_windows
    from backfill_dagster.report.page import build_report

    study = load_study(path)
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    pipeline.build_tables(study)
    for table in study_files.study_tables(study):
        pipeline.inspect_table(study, table, study_windows(study.time_range))
    build_report(study)


if __name__ == "__main__":
    _stages(Path(sys.argv[1]))
