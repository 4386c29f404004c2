"""How long the one command takes until it asks a server for the first time.

    python -m backfill_dagster_tests.benchmarks --only start_up

Runs `dagster job execute -m backfill_dagster -j demo` in a copy of the configuration, with no DAGSTER_HOME, as
the README says. The sandbox's PLC directory, which is asked first, is a server of our own that notes when.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from backfill_dagster.sandbox.population import PLC_HOST
from backfill_dagster_tests.benchmarks.measure import Goal, Measured, Options, Report
from backfill_dagster_tests.benchmarks.prepared_server import prepared_server
from backfill_dagster_tests.conftest import ROOT

if TYPE_CHECKING:
    from backfill_dagster_tests.benchmarks.prepared_server import PreparedServer

STUDY = "demo"
MOST_SECONDS = 4.0
# How often a process is looked at.
LOOK_SECONDS = 0.01

_PATIENCE_SECONDS = 120


def run(options: Options) -> list[Report]:
    """Start the command anew for each round; the one before them compiles what is not compiled yet."""
    measured = Measured("dagster job execute, to the first request")
    for number in range(options.rounds + 1):
        cpu, wall = _start(options.folder)
        if number:
            measured.cpu.append(cpu)
            measured.wall.append(wall)
    return [
        Report(
            "Start-up of the one command",
            ("", "wall s median", "wall s min", "CPU s median", "CPU s min"),
            [
                [
                    measured.name,
                    measured.median_wall,
                    measured.minimum_wall,
                    measured.median,
                    measured.minimum,
                ]
            ],
            [
                Goal(
                    "start-up to the first request, s",
                    MOST_SECONDS,
                    at_least=False,
                    measured=measured.median_wall,
                )
            ],
            ["Wall time, so a machine with anything else to do shows more."],
        )
    ]


def _start(folder: Path) -> tuple[float, float]:
    """Start the command, end it when it has asked; returns CPU and wall seconds up to there."""
    with tempfile.TemporaryDirectory(dir=folder) as checkout, prepared_server({}) as server:
        _copy_configuration(Path(checkout), server)
        started_at = time.time()
        process = subprocess.Popen(
            command(STUDY),
            cwd=checkout,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while (first := server.first_request_at()) is None:
                if process.poll() is not None or time.time() > started_at + _PATIENCE_SECONDS:
                    raise RuntimeError("the command asked nobody")
                time.sleep(LOOK_SECONDS)
            return own_cpu_seconds(process.pid), first - started_at
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _copy_configuration(checkout: Path, server: PreparedServer) -> None:
    shutil.copytree(ROOT / "configs", checkout / "configs")
    shutil.copy(ROOT / "dagster.yaml", checkout)
    path = checkout / "configs" / f"{STUDY}.yaml"
    study = yaml.safe_load(path.read_text())
    study["backfill"]["network"]["connect_to"] = {f"{PLC_HOST}:80": server.address}
    path.write_text(yaml.safe_dump(study))


def command(job: str) -> list[str]:
    """Return the command line of the README, with the Dagster of this environment."""
    dagster = Path(sys.executable).with_name("dagster")
    return [str(dagster), "job", "execute", "-m", "backfill_dagster", "-j", job]


def environment() -> dict[str, str]:
    """Return this process's environment, without what would make a Dagster process another one than a user's."""
    ours = {name: value for name, value in os.environ.items() if name not in _NOT_A_USERS}
    return {**ours, "PYTHONPATH": str(ROOT)}


# Bytecode is left where it is found; nothing of this machine's own Dagster or configuration takes part.
_NOT_A_USERS = ("PYTHONDONTWRITEBYTECODE", "DAGSTER_HOME", "BACKFILL_CONFIGS", "POLARS_MAX_THREADS")


def own_cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a live process so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
