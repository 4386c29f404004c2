"""What a stage counts, and what is then exposed."""

from __future__ import annotations

import os

import pytest

from backfill_dagster.monitoring.host_labels import OTHER
from backfill_dagster.monitoring.study_metrics import Metrics
from backfill_dagster.monitoring.work_cost import WorkClock, WorkCost
from backfill_dagster.network.limits import HostGates
from backfill_dagster.repos.crawl import Progress
from backfill_dagster_tests.monitoring.scraped import Scraped


def test_label_sets_stay_bounded_whatever_hosts_there_are() -> None:
    metrics = Metrics()
    study = metrics.named("study", 3)
    study.watch_gates(gates := HostGates(rate=1, burst=1, in_flight=1))
    study.name_hosts({f"pds{number}.test": number for number in range(500)})
    for number in range(500):
        host = f"pds{number}.test"
        gates.gate(host).observe(429, {"retry-after": "60"})
        study.requests_to(host).ended("success", 0.1, 10)
        study.attempted(host, "failed", "unreachable")
        study.retried(host)
    scraped = Scraped.of(metrics.registry)
    assert scraped.values("host") == {"pds497.test", "pds498.test", "pds499.test", OTHER}
    for name in (
        "backfill_requests_total",
        "backfill_account_attempts_total",
        "backfill_account_failures_total",
        "backfill_retries_total",
        "backfill_request_duration_seconds_count",
    ):
        assert scraped.sum(name) == 500
        assert scraped.sum(name, host=OTHER) == 497
    assert scraped.sum("backfill_hosts_parked") == 500
    assert len(scraped.samples) < 250


def test_hosts_that_were_asked_before_they_were_named_go_on_under_their_names() -> None:
    metrics = Metrics()
    study = metrics.named("study", 1)
    study.requests_to("pds.test").ended("success", 0.1, 10)
    study.name_hosts({"pds.test": 1})
    study.requests_to("pds.test").ended("success", 0.1, 10)
    assert Scraped.of(metrics.registry).by("host", "backfill_requests_total") == {OTHER: 1, "pds.test": 1}


def test_studies_of_one_process_are_told_apart() -> None:
    metrics = Metrics()
    for name in ("one", "two"):
        metrics.named(name, 1).retried("pds.test")
    metrics.named("two", 1).retried("pds.test")
    scraped = Scraped.of(metrics.registry)
    assert scraped.by("study", "backfill_retries_total") == {"one": 1, "two": 2}
    assert Scraped.of(Metrics().registry).samples == []


def test_what_a_hosts_limit_says_now() -> None:
    now = 1000.0
    metrics = Metrics()
    study = metrics.named("study", 2)
    gates = HostGates(rate=2, burst=4, in_flight=3, clock=lambda: now)
    study.watch_gates(gates)
    study.name_hosts({"calm.test": 2, "busy.test": 1})
    for host in ("calm.test", "busy.test", "third.test", "fourth.test", "never_asked.test"):
        gates.gate(host)
        if host != "never_asked.test":
            study.requests_to(host)
    gates.gate("busy.test").observe(429, {"retry-after": "60"}, now=0)
    gates.gate("third.test").observe(429, {"retry-after": "30"}, now=0)
    gates.gate("fourth.test").slow_down(0.5)
    now += 20
    scraped = Scraped.of(metrics.registry)
    assert scraped.by("host", "backfill_host_pause_seconds") == {
        "busy.test": 40,
        "calm.test": 0,
        OTHER: 10,
    }
    assert scraped.by("host", "backfill_host_parked_seconds") == {
        "busy.test": 20,
        "calm.test": 0,
        OTHER: 20,
    }
    assert scraped.sum("backfill_hosts_parked") == 2
    assert scraped.sum("backfill_host_tokens", host="calm.test") == 4
    assert scraped.sum("backfill_host_requests_per_second", host=OTHER) == 0.5
    now += 3600
    assert Scraped.of(metrics.registry).sum("backfill_host_parked_seconds") == 0


def test_a_stage_tells_how_it_is_and_how_it_ended() -> None:
    metrics = Metrics()
    study = metrics.named("study", 1)
    progress = Progress(total=10)
    seen: list[int] = []
    with study.stage("repos"):
        tell = study.following("repos", lambda progress: seen.append(progress.done))
        tell(progress)
        progress.done = 4
        during = Scraped.of(metrics.registry)
    assert seen == [0]
    assert during.sum("backfill_stage_active", stage="repos") == 1
    assert (during.sum("backfill_stage_work_done"), during.sum("backfill_stage_work")) == (4, 10)
    with pytest.raises(ValueError, match="of itself"), study.stage("records"):
        raise ValueError("of itself")
    after = Scraped.of(metrics.registry)
    assert after.by("stage", "backfill_stage_active") == {"records": 0, "repos": 0}
    succeeded = after.by("stage", "backfill_stage_succeeded_timestamp_seconds")
    failed = after.by("stage", "backfill_stage_failed_timestamp_seconds")
    assert succeeded["repos"] > failed["repos"] == 0
    assert failed["records"] > succeeded["records"] == 0


def test_a_state_that_no_account_is_in_any_more_is_not_told() -> None:
    metrics = Metrics()
    study, other = metrics.named("study", 1), metrics.named("other", 1)
    other.accounted({"complete": 2, "failed": 1}, {"posts": 11}, filtered=3, rejected=1)
    study.accounted({"complete": 2, "failed": 1}, {"posts": 12}, filtered=4, rejected=2)
    study.accounted({"complete": 2}, {"posts": 11}, filtered=3, rejected=1)
    scraped = Scraped.of(metrics.registry)
    assert scraped.sum("backfill_accounts", study="other", state="failed") == 1
    told = {
        sample.labels["state"]
        for sample in scraped.samples
        if sample.labels.get("study") == "study" and "state" in sample.labels
    }
    assert told == {"complete"}
    assert scraped.sum("backfill_records", study="study", type="posts", fate="kept") == 11
    assert scraped.sum("backfill_records", study="study", fate="filtered") == 3
    assert scraped.sum("backfill_records", study="study", fate="rejected") == 1


def test_the_time_of_writing_is_told_apart() -> None:
    clock = WorkClock()
    with clock.writing(), clock.writing():
        sum(range(200_000))
    cost = clock.cost()
    assert cost.write_seconds > cost.seconds >= 0
    assert cost.process == os.getpid()
    assert cost.peak_bytes > 1_000_000


def test_only_workers_count_as_workers() -> None:
    metrics = Metrics()
    study = metrics.named("study", 1)
    study.worked("posts", "build", WorkCost(1.0, 0.5, os.getpid(), 9_000))
    assert Scraped.of(metrics.registry).sum("backfill_memory_peak_bytes", process="worker") == 0
    study.worked("posts", "build", WorkCost(1.0, 0.5, os.getpid() + 1, 9_000))
    study.worked("posts", "build", WorkCost(1.0, 0.5, os.getpid() + 1, 8_000))
    scraped = Scraped.of(metrics.registry)
    assert scraped.sum("backfill_memory_peak_bytes", process="worker") == 9_000
    assert scraped.by("work", "backfill_work_seconds_total") == {"build": 3.0, "write": 1.5}
    assert 1_000_000 < scraped.sum("backfill_memory_bytes") < scraped.sum("backfill_memory_limit_bytes")
