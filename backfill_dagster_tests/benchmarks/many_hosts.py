"""How a study of thousands of hosts is to work with: the one command, its history, and what the UI waits for.

    python -m backfill_dagster_tests.benchmarks.many_hosts [--hosts 3000] [--folder PATH]

One small account on each host of a sandbox, which this process serves. Runs the study's job twice as a command line
does, with a history of its own; then asks a web server on that history what the UI asks when a person opens the
partitioned assets.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import yaml

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox import population
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.benchmarks.measure import adopt_orphans, orphans_cpu_seconds
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.dagster_dev import Deployment, dagster_dev

STUDY = "many"

_PARTITIONS = """query Partitions($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    partitionKeysByDimension { partitionKeys } } } }"""
_STATUS = """query Status($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    assetPartitionStatuses { ... on DefaultPartitionStatuses {
    materializedPartitions failedPartitions unmaterializedPartitions } } } } }"""
_ONE = """query One($key: AssetKeyInput!, $partitions: [String!]) { assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetMaterializations(limit: 1, partitions: $partitions) {
    partition metadataEntries { label } } } } }"""
_EVENTS = """query Events($run: ID!) { logsForRun(runId: $run, limit: 1000) { ... on EventConnection {
    events { __typename } } } }"""
_GRAPH = """{ assetNodes { id assetKey { path } dependencyKeys { path } } }"""


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=3000)
    parser.add_argument("--folder", type=Path, help="where to work; kept. A temporary folder if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        configs = folder / "configs"
        configs.mkdir(parents=True, exist_ok=True)
        with _network(options.hosts) as network:
            _write_study(configs / f"{STUDY}.yaml", folder, network)
            for name in ("first run", "second run, with nothing to do"):
                _run(folder, name)
        _say_history(folder)
        with dagster_dev(folder) as deployment:
            _say_ui(deployment)


def _network(hosts: int) -> SandboxNetwork:
    """Return a network with as many accounts as hosts, one on each."""
    even = [(number + 1) / hosts for number in range(hosts)]
    with mock.patch.object(population, "_host_shares", return_value=even):
        return SandboxNetwork(SandboxSettings(seed=1, accounts=hosts, hosts=hosts, records=3))


def _write_study(path: Path, folder: Path, network: SandboxNetwork) -> None:
    study = {
        "name": STUDY,
        "source": {"type": "inline", "dids": list(network.dids)},
        "storage": {"path": str(folder / "data")},
        "time_range": {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"},
        "processing": {"requests_per_second": 500, "max_concurrent_pds": 200},
        "automation": {"on_new_data": False},
        "network": {
            "plc_url": network.plc_url,
            "plc_requests_per_second": 1000,
            "connect_to": network.connect_to,
        },
    }
    path.write_text(yaml.safe_dump({"backfill": study}))


def _run(folder: Path, name: str) -> None:
    (folder / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    environment = {**os.environ, "DAGSTER_HOME": str(folder), "BACKFILL_CONFIGS": str(folder / "configs")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(Path(sys.executable).with_name("dagster")), "job", "execute"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    adopt_orphans()
    with (folder / "run.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "-m", "backfill_dagster", "-j", STUDY],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code = process.wait()
    # They count with the others once they are waited for.
    orphans_cpu_seconds(process.pid)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    _say(f"{name}: exit {code}", f"{time.monotonic() - started:.0f} s, {cpu:.0f} s of CPU")


def _say_history(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            for run in reversed(instance.get_run_records()):
                events = len(instance.all_logs(run.dagster_run.run_id))
                seconds = (run.end_time or 0) - (run.start_time or 0)
                _say(f"  {run.dagster_run.job_name}", f"{seconds:.1f} s, {events:,} events")
    finally:
        os.chdir(before)
    size = sum(path.stat().st_size for path in (folder / ".dagster").rglob("*") if path.is_file())
    _say("history on disk", f"{size / 1e6:.1f} MB")


def _say_ui(deployment: Deployment) -> None:
    runs = deployment.runs()
    fetch = next(run for run in runs if run.job == f"{STUDY}_stage_fetch")
    questions: dict[str, tuple[str, dict[str, Any]]] = {"the graph of all assets": (_GRAPH, {})}
    for asset in ("repos", "records", "posts"):
        key = {"path": [STUDY, asset]}
        questions |= {
            f"{asset}: the partitions that can be chosen": (_PARTITIONS, {"key": key}),
            f"{asset}: each partition's status": (_STATUS, {"key": key}),
        }
    one = {"key": {"path": [STUDY, "repos"]}, "partitions": ["pds7.sandbox.test"]}
    questions["repos: one partition's metadata"] = (_ONE, one)
    questions["the fetch run's first 1,000 events"] = (_EVENTS, {"run": fetch.id})
    for name, (query, variables) in questions.items():
        _say(f"UI, {name}", " / ".join(_milliseconds(deployment, query, variables) for _ in range(3)))


def _milliseconds(deployment: Deployment, query: str, variables: dict[str, Any]) -> str:
    started = time.monotonic()
    deployment.ask(query, **variables)
    return f"{1000 * (time.monotonic() - started):.0f} ms"


def _say(what: str, found: str) -> None:
    sys.stdout.write(f"{what:<60} {found}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
