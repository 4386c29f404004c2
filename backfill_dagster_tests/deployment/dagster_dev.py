"""`dagster dev` as its users start it, webserver, daemon and code server, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from backfill_dagster_tests.conftest import ROOT

_START_SECONDS = 120
_END_SECONDS = 20
_LOCATION = "backfill_dagster"
# What a run is before it is over.
_UNFINISHED = {"QUEUED", "NOT_STARTED", "MANAGED", "STARTING", "STARTED", "CANCELING"}

_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError {
    __typename ... on PythonError { message } } } } } }"""
_RUNS = """{ runsOrError(limit: 500) { ... on Runs { results {
    runId jobName status creationTime startTime endTime tags { key value } } } } }"""
_LAUNCH = """mutation Launch($job: String!, $location: String!) { launchRun(executionParams: {
    selector: { repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job },
    runConfigData: {} })
    { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
      ... on RunConfigValidationInvalid { errors { message } } } }"""

_BACKFILL = """mutation Backfill($asset: [String!]!, $partitions: [String!]!) { launchPartitionBackfill(
    backfillParams: { assetSelection: [{ path: $asset }], partitionNames: $partitions })
    { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""


class Run(NamedTuple):
    """One run of the deployment's history; `started` and `ended` are seconds since 1970."""

    id: str
    job: str
    status: str
    tags: dict[str, str]
    started: float | None
    ended: float | None

    @property
    def is_over(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        return self.status not in _UNFINISHED


@dataclass(frozen=True)
class Deployment:
    """A Dagster that runs, with its web server at `url`; `is_alive` and `log` are of all of its processes."""

    folder: Path
    url: str
    is_alive: Callable[[], bool]
    log: Callable[[], str]

    def ask(self, query: str, **variables: object) -> Any:
        """Return the data of a GraphQL query or mutation."""
        answer = httpx.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60
        ).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def runs(self) -> list[Run]:
        """Return all runs, the earliest first."""
        results = self.ask(_RUNS)["runsOrError"]["results"]
        return [
            Run(
                run["runId"],
                run["jobName"],
                run["status"],
                {tag["key"]: tag["value"] for tag in run["tags"]},
                run["startTime"],
                run["endTime"],
            )
            for run in sorted(results, key=lambda run: run["creationTime"])
        ]

    def launch(self, job: str) -> str:
        """Launch a job as the button of its page does; return the run's id."""
        launched = self.ask(_LAUNCH, job=job, location=_LOCATION)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def backfill(self, asset: list[str], partitions: list[str]) -> str:
        """Launch a backfill of an asset's partitions as its page does; return the backfill's id."""
        launched = self.ask(_BACKFILL, asset=asset, partitions=partitions)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def wait_for(
        self,
        what: str,
        is_so: Callable[[], bool],
        seconds: float,
        may_fail: Callable[[Run], bool] = lambda _: False,
    ) -> None:
        """Return as soon as something is so; fail with what the deployment did instead, at once if a run fails."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if not self.is_alive():
                raise AssertionError(f"a process has ended:\n{self.log()}")
            runs = self.runs() if self.is_loaded() else []
            failed = [run for run in runs if run.status in ("FAILURE", "CANCELED") and not may_fail(run)]
            if failed or time.monotonic() > deadline:
                history = "\n".join(f"{run.job} {run.status}" for run in runs)
                why = "a run failed before" if failed else f"not within {seconds:g} s"
                raise AssertionError(f"{why}: {what}\n{history}\n{self.log()}")
            time.sleep(0.5)

    def is_loaded(self) -> bool:
        """Tell whether the server answers, and knows our code location; fails if that cannot be loaded."""
        try:
            entries = self.ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        except httpx.HTTPError:
            return False
        loaded = {entry["name"]: entry["locationOrLoadError"] for entry in entries}.get(_LOCATION)
        if loaded is None:
            return False
        if loaded["__typename"] == "RepositoryLocation":
            return True
        # A code server that is a service of its own is waited for, as the others wait for it.
        assert "Could not reach user code server" in loaded["message"], loaded["message"]
        return False


@contextmanager
def dagster_dev(folder: Path) -> Iterator[Deployment]:
    """Run `dagster dev` on the studies in a folder's `configs` until the block ends; nothing of it stays alive."""
    port = free_port()
    shutil.copy(ROOT / "dagster.yaml", folder)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(folder),
        "BACKFILL_CONFIGS": str(folder / "configs"),
    }
    # Without compiled bytecode each of its many processes starts twice as slowly.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(Path(sys.executable).with_name("dagster")), "dev"]
    printed = folder / "dagster_dev.log"
    with printed.open("wb") as log:
        process = subprocess.Popen(
            [*command, "-w", str(ROOT / "workspace.yaml"), "-p", str(port)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deployment = Deployment(
        folder,
        f"http://127.0.0.1:{port}",
        is_alive=lambda: process.poll() is None,
        log=lambda: printed.read_text(errors="replace")[-8000:],
    )
    try:
        deployment.wait_for("dagster dev answers", deployment.is_loaded, _START_SECONDS)
        yield deployment
    finally:
        _end(process)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all of its group: servers, daemon, runs and their workers."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_END_SECONDS)
