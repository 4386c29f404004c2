"""What a fetch tells of itself while it goes on, and while nothing does."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from backfill_dagster import pipeline
from backfill_dagster.network.limits import HostGate
from backfill_dagster.repos.outcomes import FailureReason
from backfill_dagster.sandbox.faults import HostDown, TooManyRequests
from backfill_dagster_tests.studies import sandbox, sandbox_study

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from backfill_dagster.repos.crawl import HostReport, Progress


def test_a_fetch_tells_of_itself_also_while_nothing_comes_in(tmp_path: Path) -> None:
    network = sandbox()
    network.faults.clear()
    parked, down = network.hosts[1:3]
    processing = {"requests_per_second": 500, "workers": 1, "max_retries": 0}
    study = sandbox_study(tmp_path, processing=processing)
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    network.faults.set_host(parked, TooManyRequests(retry_after=4), times=1)
    network.faults.set_host(down, HostDown())
    seen: list[Progress] = []
    reports: dict[str, HostReport] = {}
    try:
        pipeline.fetch_repos(
            study,
            on_host=lambda report: reports.update({report.pds_host: report}),
            on_progress=lambda progress: seen.append(copy.deepcopy(progress)),
        )
    finally:
        network.faults.clear()

    idle = [progress for progress in seen if progress.hosts_done == 3 and progress.hosts_parked == 1]
    assert len(idle) > 3
    assert {progress.hosts_active for progress in idle} == {0}
    for progress in seen:
        assert progress.total == 55
        assert progress.hosts_active + progress.hosts_parked + progress.hosts_done <= progress.hosts == 4
    last = seen[-1]
    assert (last.done, last.hosts_done, last.hosts_active, last.hosts_parked) == (55, 4, 0, 0)
    unreachable = reports[down].reasons[FailureReason.UNREACHABLE]
    assert last.failures == {FailureReason.UNREACHABLE: unreachable}
    assert unreachable > 0
    assert last.bytes_received == sum(report.bytes_received for report in reports.values()) > 0
    assert {host: report.pauses for host, report in reports.items() if report.pauses} == {parked: 1}
    # The one that was refused was asked for again, and what was no repository was asked about.
    attempted = {host: report.outcomes.total() for host, report in reports.items()}
    assert all(reports[host].requests >= attempted[host] for host in attempted if host != down)
    assert reports[parked].requests > attempted[parked]


def test_a_host_that_never_has_enough_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    gate = HostGate("pds.test", rate=1, burst=1, in_flight=1, clock=lambda: now)
    for _ in range(1000):
        gate.observe(429, {"retry-after": "5"}, now=now)
        now += 3600
    assert gate.parks == 1000
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 10
    assert told[-1].endswith("number 512")
