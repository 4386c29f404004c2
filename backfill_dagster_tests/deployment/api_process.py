"""The API as its users start it: a process of its own, beside a running `dagster dev`."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from backfill_dagster_tests.deployment.dagster_dev import free_port

_START_SECONDS = 60
_END_SECONDS = 20


@dataclass(frozen=True)
class RunningApi:
    """A running API and a token for each use of it."""

    url: str
    tokens: dict[str, str]
    log: Path

    def ask(self, method: str, path: str, token: str = "runner", **body: Any) -> httpx.Response:
        """Make a request, with a JSON body if there are fields for one."""
        headers = {"authorization": f"Bearer {self.tokens[token]}"}
        return httpx.request(method, f"{self.url}{path}", headers=headers, json=body or None, timeout=150)

    def status(self, job_id: str) -> dict[str, Any]:
        """Return where a job stands."""
        answer = self.ask("GET", f"/api/backfill/status/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@contextmanager
def api_process(folder: Path, dagster_url: str) -> Iterator[RunningApi]:
    """Serve the API for the studies in a folder's `configs` until the block ends."""
    tokens = {name: secrets.token_urlsafe(32) for name in ("runner", "admin", "reader")}
    scopes = {"runner": "read+run", "admin": "read+run+admin", "reader": "read"}
    port, log = free_port(), folder / "api.log"
    environment = {
        **os.environ,
        "BACKFILL_DAGSTER_URL": dagster_url,
        "BACKFILL_CONFIGS": "configs",
        "BACKFILL_API_TOKENS": ",".join(f"{name}:{scopes[name]}:{token}" for name, token in tokens.items()),
        "BACKFILL_API_RATE": "10000/minute",
        "BACKFILL_API_FAILED_RATE": "10000/minute",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "backfill_dagster.api", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield RunningApi(url, tokens, log)
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False
