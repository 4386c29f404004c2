"""Prometheus itself: it scrapes a run, answers what the dashboard asks, and takes the rules."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import polars as pl
import pytest
import yaml

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.network.turns import RATE_LIMITED
from backfill_dagster.sandbox.faults import HostDown, ServerError, TooManyRequests
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.crash.command import STUDY
from backfill_dagster_tests.crash.job import start_job
from backfill_dagster_tests.monitoring.promql import filled
from backfill_dagster_tests.monitoring.test_dashboard import CONFIGS, RULES, queries

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.prometheus

SETTINGS = SandboxSettings(seed=11, accounts=80, hosts=4, records=40)
SECONDS = 240
# What the dashboard asks for and a run that goes on well enough has nothing to tell of.
MAY_BE_EMPTY = {"Fetch still takes", "Stage failed"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that has watched a run from before its beginning to its end."""

    url: str
    started: float
    study: Path

    def ask(self, path: str, **parameters: Any) -> Any:
        """Return the data of an answer of its API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def over_time(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has had since the beginning."""
        data = self.ask("query_range", query=expression, start=self.started, end=time.time(), step=1)
        return list(data["result"])

    def last(self, expression: str) -> float:
        """Return the last value that an expression has had."""
        [series] = self.over_time(expression)
        return float(series["values"][-1][1])


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """Run Prometheus with the example configuration, but for the target and a faster pace."""
    config = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(CONFIGS / "alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/prometheus_data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx.get(f"http://{address}/-/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A study of four hosts: one is down, one refuses some requests, one fails at first; it takes half a minute."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    shutil.copy(ROOT / "dagster.yaml", folder)
    with SandboxNetwork(SETTINGS) as network:
        body = {
            "name": STUDY,
            "source": {"type": "inline", "dids": network.dids},
            "storage": {"path": str(folder / "data")},
            "processing": {"requests_per_second": 2, "workers": 1, "batch_size": 3, "max_retries": 1},
            "network": {
                "plc_url": network.plc_url,
                "plc_requests_per_second": 500,
                "retry_base_seconds": 0.05,
                "connect_to": network.connect_to,
                "allow_private_addresses": True,
            },
            "monitoring": {"prometheus_port": port, "prometheus_hosts": 3},
        }
        (folder / f"{STUDY}.yaml").write_text(yaml.safe_dump({"backfill": body}))
        first, second, third, fourth = network.hosts
        network.faults.set_host(second, TooManyRequests(retry_after=3), times=2)
        network.faults.set_host(third, ServerError(), times=3)
        network.faults.set_host(fourth, HostDown())
        with prometheus(folder, port) as url:
            started = time.time()
            process = start_job(folder)
            try:
                said, _ = process.communicate(timeout=SECONDS)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            # One host could not be read.
            assert process.returncode == 1, said
            assert first not in said
            assert fourth in said
            assert "All others are in the tables" in said
            yield Prometheus(url, started, folder / "data" / STUDY)


def test_the_run_was_scraped_all_along(watched: Prometheus) -> None:
    [up] = watched.over_time('max_over_time(up{job="backfill"}[2s])')
    assert sum(value == "1" for _, value in up["values"]) > 15
    stages = {series["metric"]["stage"] for series in watched.over_time("backfill_stage_active == 1")}
    assert {"repos", "records"} <= stages


@pytest.mark.parametrize(("title", "expression"), [(title, expression) for title, expression, _ in queries()])
def test_a_query_of_the_dashboard_is_answered(watched: Prometheus, title: str, expression: str) -> None:
    series = watched.over_time(filled(expression))
    assert series or title in MAY_BE_EMPTY
    for one in series:
        assert one["metric"].get("study", STUDY) == STUDY


def test_what_was_scraped_last_is_what_the_run_came_to(watched: Prometheus) -> None:
    accounts = pl.read_parquet(watched.study / "accounts.parquet")
    for state, number in accounts["state"].value_counts().iter_rows():
        assert watched.last(f'backfill_accounts{{state="{state}"}}') == number
    assert watched.last('sum(backfill_records{fate="kept"})') == accounts["records_kept"].sum()
    failed = accounts.filter(state="failed").height
    assert watched.last('sum(backfill_account_attempts_total{outcome="failed"})') == failed > 0
    assert watched.last(f'sum(backfill_requests_total{{outcome="{RATE_LIMITED}"}})') == 2
    assert watched.last("max_over_time(backfill_hosts_parked[2m])") == 1


def test_the_rules_are_evaluated(watched: Prometheus) -> None:
    [group] = watched.ask("rules")["groups"]
    assert {rule["name"]: rule["health"] for rule in group["rules"]} == {
        rule["alert"]: "ok" for rule in RULES
    }
    fired = {series["metric"]["alertname"] for series in watched.over_time('ALERTS{alertstate="firing"}')}
    assert fired >= {"BackfillStageFailed"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", str(CONFIGS / "prometheus.yml")],
        ["check", "rules", str(CONFIGS / "alerts.yml")],
        ["test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_finds_no_fault(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
