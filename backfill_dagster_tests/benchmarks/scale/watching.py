"""Looking at a command from outside while it runs: what its processes have used and hold, several times a second."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster_tests.benchmarks.measure import (
    adopt_orphans,
    descendants,
    memory_of,
    orphans_cpu_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LOOK_SECONDS = 0.2
_TICK = os.sysconf("SC_CLK_TCK")


class Look(NamedTuple):
    """What was seen at one time (unix): CPU seconds so far of the parent alone and of the processes that it started,
    and what the parent and the largest of the others held, in bytes.
    """

    at: float
    parent_cpu: float
    others_cpu: float
    parent_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True)
class Watched:
    """A command from its start to its end. Peaks are the kernel's high-water marks, in bytes."""

    looks: Sequence[Look]
    cpu: float
    wall: float
    parent_peak: int
    worker_peak: int

    def cpu_at(self, at: float) -> tuple[float, float]:
        """Return the CPU seconds of the parent and of the others up to a time, between two looks in proportion."""
        for before, after in pairwise(self.looks):
            if before.at <= at < after.at:
                share = (at - before.at) / (after.at - before.at)
                return (
                    before.parent_cpu + share * (after.parent_cpu - before.parent_cpu),
                    before.others_cpu + share * (after.others_cpu - before.others_cpu),
                )
        edge = self.looks[0] if at < self.looks[0].at else self.looks[-1]
        return edge.parent_cpu, edge.others_cpu

    def peaks_within(self, start: float, end: float) -> tuple[int, int]:
        """Return the most that the parent and the largest of the others were seen to hold between two times."""
        seen = [look for look in self.looks if start <= look.at <= end]
        return (
            max((look.parent_bytes for look in seen), default=0),
            max((look.largest_bytes for look in seen), default=0),
        )


def watch_command(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> Watched:
    """Run a command to its end in a folder. Raises CalledProcessError; what it said stands in `log`."""
    adopt_orphans()
    started = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    looks = [Look(time.time(), 0.0, 0.0, 0, 0)]
    parent_peak = worker_peak = ended = 0
    try:
        while not ended:
            look, peaks = _look(process.pid, looks[-1])
            looks.append(look)
            parent_peak, worker_peak = max(parent_peak, peaks[0]), max(worker_peak, peaks[1])
            time.sleep(_LOOK_SECONDS)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    finally:
        if not ended:
            os.killpg(process.pid, signal.SIGTERM)
    wall = time.perf_counter() - started
    # Waited for above, where what it used can be had.
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime + orphans_cpu_seconds(process.pid)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Watched(looks, cpu, wall, parent_peak, worker_peak)


def _look(pid: int, last: Look) -> tuple[Look, tuple[int, int]]:
    parent, reaped = _cpu_seconds(pid)
    others, largest, largest_peak = reaped, 0, 0
    for child in descendants(pid):
        own, its_children = _cpu_seconds(child)
        memory = memory_of(child)
        others += own + its_children
        largest, largest_peak = max(largest, memory.anonymous), max(largest_peak, memory.resident)
    memory = memory_of(pid)
    # One that ends between two readings is in neither of them: what was used cannot become less.
    look = Look(
        time.time(), max(parent, last.parent_cpu), max(others, last.others_cpu), memory.anonymous, largest
    )
    return look, (memory.resident, largest_peak)


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """Return what a process has used itself, and what its children had used that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    user, system, children_user, children_system = map(int, fields[11:15])
    return (user + system) / _TICK, (children_user + children_system) / _TICK
