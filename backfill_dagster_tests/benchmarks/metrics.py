"""What it costs to measure a fetch: with everything counted, against nothing counted.

    python -m backfill_dagster_tests.benchmarks.metrics

First the CPU time of the same fetch with and without, in turns. Then, since that is less than what the same fetch
differs by from time to time, that of what is done for one request, alone, as a share of a request's whole CPU time;
and that of a scrape, as a share of the time between two.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from prometheus_client import generate_latest

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.monitoring.study_metrics import HostRequests, Metrics, StudyMetrics
from backfill_dagster_tests.studies import sandbox, sandbox_study

NETWORK = SandboxSettings(seed=1, accounts=120, hosts=10, records=60)
PAIRS = 5
# Where each request, each account and each pack is counted.
_COUNTING = ((HostRequests, "ended"), (StudyMetrics, "attempted"), (StudyMetrics, "packed"))
SCRAPE_SECONDS = 15
REQUESTS = 200_000


def _count_nothing(*_: object) -> None:
    """Stand in for what counts; a mock would cost more than that."""


@contextmanager
def uncounted() -> Iterator[None]:
    """Count nothing there."""
    with ExitStack() as patches:
        for owner, name in _COUNTING:
            patches.enter_context(mock.patch.object(owner, name, _count_nothing))
        yield


def fetch(study: Study, metrics: StudyMetrics | None) -> float:
    """Fetch everything anew; returns the CPU seconds of this process."""
    shutil.rmtree(study.root / "repos", ignore_errors=True)
    before = time.process_time()
    pipeline.fetch_repos(study, metrics=metrics)
    return time.process_time() - before


def compare(study: Study) -> None:
    """Fetch with and without, in turns that change which comes first."""
    with_all: list[float] = []
    without: list[float] = []
    metrics = Metrics()
    fetch(study, None)
    for pair in range(PAIRS):
        for on in (pair % 2 == 0, pair % 2 == 1):
            if on:
                with_all.append(fetch(study, metrics.of(study)))
            else:
                with uncounted():
                    without.append(fetch(study, None))
    on_cpu, off_cpu = statistics.median(with_all), statistics.median(without)
    spread = (max(without) - min(without)) / off_cpu
    print(f"fetch: {on_cpu:.3f} s CPU with, {off_cpu:.3f} s without: ratio {on_cpu / off_cpu:.3f}")  # noqa: T201
    print(f"       (those without differ by {spread:.0%} among themselves)")  # noqa: T201


def count_alone(study: Study) -> None:
    """Count requests and nothing else, and set that against all that a request of a fetch costs."""
    network = sandbox(NETWORK)
    network.requests.clear()
    with uncounted():
        whole = fetch(study, None) / network.requests.count()
    metrics = Metrics()
    of_study = metrics.of(study)
    of_study.name_hosts(dict.fromkeys(network.hosts, 1))
    hosts = [*network.hosts] * (REQUESTS // len(network.hosts))
    before = time.process_time()
    for host in hosts:
        begun = time.monotonic()
        of_study.requests_to(host).ended("success", time.monotonic() - begun, 1000)
    of_request = (time.process_time() - before) / len(hosts)
    before = time.process_time()
    for host in hosts:
        of_study.attempted(host, "complete", None)
    of_account = (time.process_time() - before) / len(hosts)
    counted = of_request + of_account
    print(  # noqa: T201
        f"a request: {1e6 * of_request:.1f} µs to count it, {1e6 * of_account:.1f} µs for its account, "
        f"of {1e6 * whole:,.0f} µs: {counted / whole:.2%}"
    )
    before = time.process_time()
    size = len(generate_latest(metrics.registry))
    scrape = time.process_time() - before
    share = scrape / SCRAPE_SECONDS
    print(f"a scrape of {size:,} bytes: {1e3 * scrape:.1f} ms, {share:.3%} of {SCRAPE_SECONDS} s")  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        study = sandbox_study(Path(folder), settings=NETWORK)
        pipeline.collect_source(study)
        pipeline.resolve_accounts(study)
        compare(study)
        count_alone(study)
