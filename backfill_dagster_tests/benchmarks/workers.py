"""Two workers against one: many small repositories through the whole pipeline, in wall time.

With one worker the parent has one thread for Polars, with two it has two, so that the second case may use twice as
much of the machine as the first in every stage. Workers are started before the clock is: a study starts them once
for each stage, and a real one runs for hours.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster.workers import worker_pool
from backfill_dagster_tests.benchmarks.generated_repos import small_repos
from backfill_dagster_tests.benchmarks.measure import Cell, Goal, Report, run_fresh
from backfill_dagster_tests.benchmarks.stages import Stages

if TYPE_CHECKING:
    from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo
    from backfill_dagster_tests.benchmarks.measure import Options

ACCOUNTS = 400
# So many that no worker waits long for the other at the end of a stage.
_ACCOUNTS_PER_PACK = 25
_MACHINE = "a plain loop: what the machine gives"
_STAGES = (_MACHINE, "verify and pack", "records", "tables", "whole")


def run(options: Options) -> list[Report]:
    """Compare one and two workers, each in a process of its own, in turns."""
    repos = small_repos(options.folder / "small", ACCOUNTS)
    seconds: dict[int, list[list[float]]] = {1: [], 2: []}
    for number in range(options.rounds):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            run = run_fresh(measure, options.folder, repos, workers, polars_threads=workers)
            seconds[workers].append(run.result)
    rows: list[list[Cell]] = []
    for place, stage in enumerate(_STAGES):
        one, two = ([found[place] for found in seconds[workers]] for workers in (1, 2))
        gains = [first / second for first, second in zip(one, two, strict=True)]
        rows.append(
            [
                stage,
                statistics.median(one),
                min(one),
                statistics.median(two),
                min(two),
                statistics.median(gains),
            ]
        )
    columns = ("wall", "1 worker, median s", "min s", "2 workers, median s", "min s", "times as fast")
    records = sum(repo.records for repo in repos)
    gain = rows[-1][-1]
    assert isinstance(gain, float)
    goal = Goal("times as fast with two workers as with one", 1.8, True, gain)
    title = f"Two workers against one, {ACCOUNTS} repositories, {records:,} records"
    return [Report(title, columns, rows, [goal], (_NOTE,))]


_NOTE = "The whole counts from the downloaded files to the tables; starting the workers is not in it."


def measure(folder: Path, repos: tuple[SignedRepo, ...], workers: int) -> list[float]:
    """Return the wall seconds of _STAGES, with so many workers."""
    with worker_pool(workers) as pool:
        with tempfile.TemporaryDirectory() as meeting:
            wait([pool.submit(_warm_up, Path(meeting), workers) for _ in range(workers)])
        started = time.perf_counter()
        wait([pool.submit(_spin) for _ in range(2)])
        machine = time.perf_counter() - started
        stages = Stages.of(
            folder / "workers", repos, pool, processing={"workers": workers, "batch_size": _ACCOUNTS_PER_PACK}
        )
        seconds = []
        for stage in (stages.pack, stages.records, stages.tables):
            started = time.perf_counter()
            stage()
            seconds.append(time.perf_counter() - started)
    return [machine, *seconds, sum(seconds)]


def _warm_up(meeting: Path, workers: int) -> None:
    """Wait in this worker, which has imported the stages by now, until all are here: none can take another's turn."""
    (meeting / str(os.getpid())).touch()
    while len(list(meeting.iterdir())) < workers:
        time.sleep(0.01)


def _spin() -> int:
    return sum(number * number for number in range(10_000_000))
