"""What it costs to say how far a fetch is: bar and events on, against both off.

    python -m backfill_dagster_tests.benchmarks.progress

First the CPU time of the same small fetch with and without, in turns: the bar, and one event at its end. Then that of
an hour's telling by itself, at the pace of a crawl: the share of one core that it takes.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.orchestration import terminal
from backfill_dagster.orchestration.progress import ProgressReporter, fetch_standing
from backfill_dagster.repos.crawl import Progress
from backfill_dagster.repos.outcomes import FailureReason
from backfill_dagster.ticking import TICK_SECONDS
from backfill_dagster_tests.orchestration.screen import Screen
from backfill_dagster_tests.studies import sandbox_study

NETWORK = SandboxSettings(seed=1, accounts=120, hosts=10, records=60)
PAIRS = 5
HOUR = 3600.0


@contextmanager
def told(
    instance: dg.DagsterInstance, clock: Callable[[], float] = time.monotonic
) -> Iterator[ProgressReporter[Progress]]:
    """Tell of progress as a run on a terminal does: a bar five times a second, events in Dagster's storage."""

    def log(line: str, metadata: dict[str, Any]) -> None:
        event = dg.AssetObservation(asset_key=["study", "repos"], description=line, metadata=metadata)
        instance.report_runless_asset_event(event)

    with (
        Screen() as screen,
        open(screen.descriptor, "w", closefd=False) as stream,
        mock.patch.object(terminal.Bar, "_is_in_foreground", return_value=True),
        terminal.Terminal(stream).show_bar("Fetching") as bar,
    ):
        reporter = ProgressReporter(fetch_standing, log, clock=clock)
        reporter.bar = bar
        yield reporter
        reporter.finish()


def fetch(study: Study, on_progress: Callable[[Progress], None]) -> float:
    """Fetch everything anew; returns the CPU seconds of this process and of its workers, which have ended by then."""
    shutil.rmtree(study.root / "repos", ignore_errors=True)
    before = sum(os.times()[:4])
    pipeline.fetch_repos(study, on_progress=on_progress)
    return sum(os.times()[:4]) - before


def compare(study: Study, instance: dg.DagsterInstance) -> None:
    """Fetch with and without, in turns that change which comes first."""
    without: list[float] = []
    with_all: list[float] = []
    fetch(study, lambda _: None)
    for pair in range(PAIRS):
        for on in (pair % 2 == 0, pair % 2 == 1):
            if on:
                with told(instance) as reporter:
                    with_all.append(fetch(study, reporter))
            else:
                without.append(fetch(study, lambda _: None))
    on_cpu, off_cpu = statistics.median(with_all), statistics.median(without)
    spread = (max(without) - min(without)) / off_cpu
    print(f"fetch: {on_cpu:.3f} s CPU with, {off_cpu:.3f} s without: ratio {on_cpu / off_cpu:.3f}")  # noqa: T201
    print(f"       (those without differ by {spread:.0%} among themselves)")  # noqa: T201


def tell_for_an_hour(instance: dg.DagsterInstance) -> None:
    """Tell of an hour with 3,000 hosts, as fast as it goes."""
    now = 0.0
    progress = Progress(total=400_000, hosts=3000, hosts_active=32, hosts_parked=7)
    progress.failures.update({FailureReason.UNREACHABLE: 12, FailureReason.SERVER_ERROR: 3})
    before = time.process_time()
    with told(instance, clock=lambda: now) as reporter:
        while now < HOUR:
            now += TICK_SECONDS
            progress.done = round(now * 60)
            progress.bytes_received += 2_000_000
            reporter(progress)
    cpu = time.process_time() - before
    print(f"an hour of telling: {cpu:.1f} s CPU, {cpu / HOUR:.2%} of a core")  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as instance:
        study = sandbox_study(Path(folder), settings=NETWORK)
        pipeline.collect_source(study)
        pipeline.resolve_accounts(study)
        compare(study, instance)
        tell_for_an_hour(instance)
