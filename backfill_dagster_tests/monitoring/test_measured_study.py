"""A whole study whose network misbehaves, and its metrics held against what the servers and the tables say."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import polars as pl
import pytest

from backfill_dagster import accounting, pipeline, study_files
from backfill_dagster.monitoring.host_labels import OTHER
from backfill_dagster.monitoring.study_metrics import Metrics
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.sandbox.faults import HostDown, ResetMidBody, ServerError, TooManyRequests
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.monitoring.scraped import Scraped
from backfill_dagster_tests.studies import sandbox, sandbox_study

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.repos.crawl import HostReport

PLC = "plc.sandbox.test"
NAMED = 2


class Measured:
    """A study that was run, and what was scraped after it."""

    def __init__(self, study: Study) -> None:
        network = sandbox()
        network.faults.clear()
        network.requests.clear()
        self.hosts = network.hosts
        metrics = Metrics()
        of_study = metrics.of(study)
        pipeline.collect_source(study, metrics=of_study)
        pipeline.resolve_accounts(study, metrics=of_study)
        first, second, third, fourth = network.hosts
        network.faults.set_host(first, TooManyRequests(retry_after=1), times=1)
        network.faults.set_host(second, ServerError(), times=2)
        network.faults.set_host(third, ResetMidBody(100), times=1, paths=["/xrpc/com.atproto.sync.getRepo"])
        network.faults.set_host(fourth, HostDown())
        try:
            self.reports: list[HostReport] = pipeline.fetch_repos(study, metrics=of_study)
        finally:
            network.faults.clear()
        self.requests = network.requests.all()
        pipeline.convert_records(study, metrics=of_study)
        for table in study_files.study_tables(study):
            pipeline.build_table(study, table, metrics=of_study)
        pipeline.build_undated_rows(study, metrics=of_study)
        listed = accounting.build_accounts(study).sums.of_source
        of_study.accounted(
            dict(listed.by("state").iter_rows()),
            {table: listed.total(table) for table in study_files.study_tables(study)},
            filtered=listed.total("records_filtered"),
            rejected=listed.total("records_rejected"),
        )
        self.accounts = pl.read_parquet(study.root / study_files.ACCOUNTS_KEY)
        self.study = study
        self.scraped = Scraped.of(metrics.registry)
        self.described = {family.name: family for family in metrics.descriptions}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return Measured(
        sandbox_study(
            tmp_path_factory.mktemp("measured"),
            "measured",
            monitoring={"prometheus_hosts": NAMED},
            processing={"requests_per_second": 500, "workers": 1, "max_retries": 1},
        )
    )


def test_requests_are_those_that_the_servers_saw(measured: Measured) -> None:
    named = {PLC, *measured.hosts[:NAMED]}
    seen = Counter(request.host if request.host in named else OTHER for request in measured.requests)
    counted = Counter(measured.scraped.by("host", "backfill_requests_total"))
    unreachable = measured.scraped.by("host", "backfill_requests_total", outcome="unreachable")
    assert unreachable[OTHER] > 0
    assert counted - Counter(unreachable) == seen
    assert measured.scraped.by("host", "backfill_request_duration_seconds_count") == dict(counted)


def test_requests_are_told_apart_by_how_they_ended(measured: Measured) -> None:
    statuses = Counter(request.status for request in measured.requests)
    outcomes = measured.scraped.by("outcome", "backfill_requests_total")
    assert outcomes["rate_limited"] == statuses[429] == 1
    assert outcomes["server_error"] == sum(n for status, n in statuses.items() if status >= 500) == 2
    assert outcomes["truncated"] == 1
    assert outcomes["success"] == statuses[200] - outcomes["truncated"]
    assert outcomes["client_error"] == sum(
        n for status, n in statuses.items() if 400 <= status < 500 and status != 429
    )


def test_bytes_are_those_of_the_fetch(measured: Measured) -> None:
    received = measured.scraped.by("host", "backfill_received_bytes_total")
    first = next(report for report in measured.reports if report.pds_host == measured.hosts[0])
    # What was asked besides repositories is no part of the fetch's own sum.
    assert 0 <= received[first.pds_host] - first.bytes_received < 0.02 * received[first.pds_host]


def test_attempts_are_those_of_the_reports(measured: Measured) -> None:
    outcomes = sum((report.outcomes for report in measured.reports), Counter[str]())
    reasons = sum((report.reasons for report in measured.reports), Counter[str]())
    assert measured.scraped.by("outcome", "backfill_account_attempts_total") == dict(outcomes)
    assert measured.scraped.by("reason", "backfill_account_failures_total") == dict(reasons)
    assert reasons["unreachable"] > 0
    assert measured.scraped.sum("backfill_retries_total") >= 3


def test_accounts_and_records_are_those_of_the_tables(measured: Measured) -> None:
    accounts = measured.accounts.filter("in_source")
    states = dict(accounts["state"].value_counts().iter_rows())
    assert measured.scraped.by("state", "backfill_accounts") == states
    for table in study_files.study_tables(measured.study):
        assert measured.scraped.sum("backfill_records", type=table, fate="kept") == accounts[table].sum() > 0
    for fate in ("kept", "filtered", "rejected"):
        total = accounts[f"records_{fate}"].sum()
        assert measured.scraped.sum("backfill_records", fate=fate) == total > 0
        assert measured.scraped.sum("backfill_converted_records_total", fate=fate) == total


def test_packs_are_those_on_disk(measured: Measured) -> None:
    storage = StudyStorage(measured.study.root)
    scraped = measured.scraped
    assert scraped.sum("backfill_pack_size_bytes_count") == len(pack_keys(storage))
    assert scraped.sum("backfill_pack_size_bytes_sum") == sum(map(storage.size, storage.keys("repos")))
    assert scraped.sum("backfill_packed_accounts_total") == scraped.sum("backfill_account_attempts_total")
    assert scraped.sum("backfill_packed_records_total") == measured.accounts["records_fetched"].sum()


def test_work_is_counted_where_workers_did_it(measured: Measured) -> None:
    scraped = measured.scraped
    for stage, work in (("repos", "verify"), ("records", "decode"), ("posts", "build"), ("undated", "build")):
        assert scraped.sum("backfill_work_seconds_total", stage=stage, work=work) > 0
        assert scraped.sum("backfill_work_seconds_total", stage=stage, work="write") > 0
    assert scraped.sum("backfill_memory_peak_bytes", process="worker") > 10_000_000
    assert scraped.sum("backfill_workers") == 0


def test_nothing_waits_when_all_is_done(measured: Measured) -> None:
    scraped = measured.scraped
    assert scraped.by("stage", "backfill_stage_work") == scraped.by("stage", "backfill_stage_work_done")
    assert scraped.sum("backfill_stage_work", stage="directory") == 60
    assert scraped.by("state", "backfill_fetch_hosts") == {"active": 0, "done": 4, "queued": 0, "waiting": 0}
    assert scraped.sum("backfill_queue_length") == 0
    assert scraped.sum("backfill_requests_in_flight") == 0


def test_every_series_is_as_its_family_is_described(measured: Measured) -> None:
    for sample in measured.scraped.samples:
        name, extra = sample.name, set()
        for suffix in ("_bucket", "_sum", "_count"):
            if name not in measured.described and name.endswith(suffix):
                name, extra = name.removesuffix(suffix), {"le"} if suffix == "_bucket" else set()
        family = measured.described[name]
        assert set(sample.labels) == {*family.labels, *extra}
        assert sample.labels["study"] == "measured"
        assert not any(value.startswith("did:") for value in sample.labels.values())


def test_no_series_names_an_account(measured: Measured) -> None:
    told = {value for sample in measured.scraped.samples for value in sample.labels.values()}
    names = {*measured.accounts["did"], *measured.accounts["handle"].drop_nulls()}
    assert told.isdisjoint(names)
    assert measured.scraped.values("host") <= {PLC, *measured.hosts[:NAMED], OTHER}
