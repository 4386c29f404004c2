"""The demo's study by a deployment with a daemon, whatever starts its runs: shared out, with one run killed.

The study's stages are started as a deployment starts them: by sensors, and the fetch by backfills of an asset over its
hosts. The network is this process's, so that it tells what it was asked by all runs together.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.processing import Processing
from backfill_dagster.connections import BURST
from backfill_dagster.orchestration.tags import RANGE_END, RANGE_START
from backfill_dagster.sandbox.faults import GET_REPO, Stall
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.deployment.dagster_dev import Deployment, Run

DEMO: dict[str, Any] = yaml.safe_load((ROOT / "configs/demo.yaml").read_text(encoding="utf-8"))["backfill"]
DIDS = {"type": "text", "path": str(ROOT / DEMO["source"]["path"])}
SETTINGS = SandboxSettings(**DEMO["network"]["sandbox"])
# Two studies of the same accounts, which share a storage.
POLITE = ("polite", "polite_too")
# Their pace in requests per second. Hosts tell nothing of it: who knows nothing of the other cannot see it there.
PACE, WINDOW_SECONDS = 2, 5
MOST_IN_A_WINDOW = BURST + PACE * WINDOW_SECONDS + Processing().requests_in_flight
# When something was asked for is another time in another run.
TIMES = ("fetched_at", "snapshot_fetched_at", "attempted_at", "resolved_at", "state_since")
# For one step of the whole, on a machine that has much else to do.
SECONDS = 400
# How long each host's fetch takes at least, so that there are two at one moment.
LEAST_SECONDS = 5
# For two runs to start one after the other.
STARTING_SECONDS = 20
_PID = re.compile(r"\(pid: (\d+)\)")
_EVENTS = """query Events($run: ID!) { logsForRun(runId: $run) { ... on EventConnection {
    events { ... on MessageEvent { message } } } } }"""


@dataclass(frozen=True)
class SharedOut:
    """What came of it: all runs, the one that was killed, the backfills' ids by study, and what hosts were asked."""

    deployment: Deployment
    plain: SandboxNetwork
    shared: SandboxNetwork
    killed: Run
    backfills: dict[str, set[str]]
    runs: list[Run]
    expected: dict[str, pl.DataFrame]

    def fetches(self, study: str) -> list[Run]:
        """Return the runs that fetched for a study."""
        return [run for run in self.runs if run.tags.get("dagster/backfill") in self.backfills[study]]

    def tables(self) -> dict[str, pl.DataFrame]:
        """Return the demo's tables."""
        return tables_of(self.deployment.folder / "data/demo")


@contextmanager
def networks() -> Iterator[tuple[SandboxNetwork, SandboxNetwork]]:
    """Run the demo's network until the block ends, twice: for the demo, and for two studies that share it."""
    with SandboxNetwork(SETTINGS) as plain, SandboxNetwork(SETTINGS) as shared:
        yield plain, shared


def write_studies(folder: Path, plain: SandboxNetwork, shared: SandboxNetwork) -> None:
    """Write the demo's study, and two of another network, which only fetch."""
    (folder / "configs").mkdir()
    _write(folder, "demo", folder / "data", plain, on_new_dids=True)
    for name in POLITE:
        # The hosts' leases are those of a storage: here, these two studies' own.
        _write(folder, name, folder / "polite_data", shared, on_new_dids=True, on_new_data=False)


def _write(
    folder: Path, name: str, storage: Path, network: SandboxNetwork | None, **automation: bool
) -> None:
    body = {**DEMO, "name": name, "source": DIDS, "storage": {"path": str(storage)}}
    if name in POLITE:
        body["processing"] = {"requests_per_second": PACE}
    if network is not None:
        body |= {
            "automation": automation,
            "network": {
                "plc_url": network.plc_url,
                "plc_requests_per_second": 1000,
                # A host may stand still for as long as it likes.
                "read_timeout_seconds": 600,
                "min_bytes_per_second": 0,
                "connect_to": {**network.handle_addresses, **network.connect_to},
            },
        }
    (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump({"backfill": body}))


@contextmanager
def the_one_command(folder: Path) -> Iterator[Callable[[], dict[str, pl.DataFrame]]]:
    """Run the demo as it stands by its one command, beside what else is done; gives what waits for its tables."""
    (folder / "configs").mkdir()
    _write(folder, "demo", folder / "data", None)
    environment = {**os.environ, "BACKFILL_CONFIGS": "configs"}
    for name in ("DAGSTER_HOME", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    command = ["job", "execute", "-m", "backfill_dagster", "-j", "demo"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("dagster")), *command],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def tables() -> dict[str, pl.DataFrame]:
        assert process.wait(SECONDS) == 0
        return tables_of(folder / "data/demo")

    try:
        yield tables
    finally:
        process.kill()
        process.wait()


def tables_of(study: Path) -> dict[str, pl.DataFrame]:
    """Return the rows of all that a user reads, by folder or file, without when they were fetched."""
    tables: dict[str, list[pl.DataFrame]] = {}
    for kind in ("tables", "undated"):
        for path in study.glob(f"{kind}/**/*.parquet"):
            key = path.parent.relative_to(study).as_posix()
            tables.setdefault(key, []).append(pl.read_parquet(path, hive_partitioning=False))
    whole = {key: pl.concat(parts).sort("uri") for key, parts in tables.items()}
    if (study / "accounts.parquet").exists():
        whole["accounts"] = pl.read_parquet(study / "accounts.parquet").sort("did")
    return {key: rows.drop(TIMES, strict=False) for key, rows in whole.items()}


def differences(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> list[str]:
    """Name the tables in which two studies differ, with their columns."""
    found = [*(one.keys() ^ other.keys())]
    for key in one.keys() & other.keys():
        if one[key].shape != other[key].shape:
            found.append(f"{key}: {one[key].shape} {other[key].shape}")
        elif not one[key].equals(other[key]):
            differ = [
                name for name in one[key].columns if not one[key][name].equals(other[key].get_column(name))
            ]
            found.append(f"{key}: {differ}")
    return sorted(found)


def share_out(
    deployment: Deployment,
    plain: SandboxNetwork,
    shared: SandboxNetwork,
    expected: Callable[[], dict[str, pl.DataFrame]],
    kill: Callable[[int], None],
) -> SharedOut:
    """Collect by several runs at once, with `kill` called for the process of one of them; returns at the end of all."""
    wait = partial(deployment.wait_for, seconds=SECONDS)
    stalled = _stall(plain)
    _stall(shared, STARTING_SECONDS)
    wait("the accounts are looked up", lambda: _have_succeeded(deployment, "discover", ["demo", *POLITE]))
    hosts = sorted(plain.hosts)
    polite = {name: {deployment.backfill([name, "repos"], hosts)} for name in POLITE}
    wait(
        "both ask the same hosts",
        lambda: (
            [run.status for run in deployment.runs() if "dagster/backfill" in run.tags] == ["STARTED"] * 2
        ),
    )
    # Neighbours would be one run.
    demo = {deployment.backfill(["demo", "repos"], part) for part in (hosts[::2], hosts[1::2])}

    def is_time() -> bool:
        waits = any(one.did == stalled and one.ended is None for one in plain.requests.all(path=GET_REPO))
        runs = [run for run in deployment.runs() if "dagster/backfill" in run.tags]
        states = Counter(run.status for run in runs)
        return waits and states == {"STARTED": 1, "SUCCESS": len(POLITE) + len(hosts) - 1}

    wait("one run stands still, and the others have fetched", is_time)
    [killed] = [run for run in deployment.runs() if run.status == "STARTED"]
    kill(_process_of(deployment, killed))

    def is_done() -> bool:
        runs = deployment.runs()
        done = any(run.job == "demo_stage_accounts" and run.status == "SUCCESS" for run in runs)
        return done and all(run.is_over for run in runs)

    wait("the tables are there", is_done, may_fail=lambda run: run.id == killed.id)
    return SharedOut(
        deployment, plain, shared, killed, {"demo": demo, **polite}, deployment.runs(), expected()
    )


def _stall(network: SandboxNetwork, longest: float = SECONDS) -> str:
    """Have each host pause in the middle of its fetch, once; return the account at which the first does so longest."""
    last = ""
    for host in sorted(network.hosts, reverse=True):
        account = next(
            account
            for account in network.truth.accounts()
            if account.role is Role.NORMAL and account.pds == f"http://{host}"
        )
        seconds = longest if host == min(network.hosts) else LEAST_SECONDS
        network.faults.set_account(account.did, Stall(after_bytes=100, seconds=seconds), times=1)
        last = account.did
    return last


def _have_succeeded(deployment: Deployment, stage: str, studies: list[str]) -> bool:
    done = {run.job for run in deployment.runs() if run.status == "SUCCESS"}
    return {f"{name}_stage_{stage}" for name in studies} <= done


def _process_of(deployment: Deployment, run: Run) -> int:
    """Return the process that does a run, as its events tell it."""
    events = deployment.ask(_EVENTS, run=run.id)["logsForRun"]["events"]
    found = [_PID.search(event.get("message") or "") for event in events]
    return int(next(match for match in found if match is not None)[1])


def check_tables(result: SharedOut) -> None:
    """Hold the tables against those of the one command."""
    assert len(result.expected) > 100
    assert differences(result.expected, result.tables()) == []


def check_runs_at_once(result: SharedOut) -> None:
    """Look for two runs that were under way at one moment, and for nothing that was done twice."""
    fetches = result.fetches("demo")
    done = [run for run in fetches if run.id != result.killed.id]
    assert {run.status for run in done} == {"SUCCESS"}
    assert len(done) == len(result.plain.hosts)
    spans = [(run.started or 0, run.ended or 0) for run in done]
    assert any(max(one[0], two[0]) < min(one[1], two[1]) for one, two in combinations(spans, 2))
    asked = Counter(request.did for request in result.plain.requests.all(path=GET_REPO))
    once = [
        account.did
        for account in result.plain.truth.accounts()
        if account.is_complete and account.pds != f"http://{min(result.plain.hosts)}"
    ]
    assert len(once) > 30
    assert {asked[did] for did in once} == {1}


def check_retry(result: SharedOut) -> None:
    """See that the run that was killed was found dead, and done by a retry."""
    assert [run.id for run in result.runs if run.status != "SUCCESS"] == [result.killed.id]
    [retry] = [run for run in result.runs if run.tags.get("dagster/parent_run_id") == result.killed.id]
    assert retry.tags["dagster/retry_number"] == "1"
    # The same host by itself.
    of_host = {RANGE_START: min(result.plain.hosts), RANGE_END: min(result.plain.hosts)}
    assert of_host.items() <= retry.tags.items()
    assert of_host.items() <= result.killed.tags.items()


def check_limits(result: SharedOut) -> None:
    """Hold against the pace of one run what two asked each host at the same time."""
    one, two = (run for name in POLITE for run in result.fetches(name))
    assert max(one.started or 0, two.started or 0) < min(one.ended or 0, two.ended or 0)
    # On such a host, two runs that knew nothing of each other would be above it at once.
    asked = [result.shared.requests.count(host=host) for host in result.shared.hosts]
    assert max(asked) > 1.5 * MOST_IN_A_WINDOW
    for host in result.shared.hosts:
        assert result.shared.requests.most_within(WINDOW_SECONDS, host=host) <= MOST_IN_A_WINDOW
