"""The official PLC directory and PDSs on loopback, started from their npm packages for the time of a test module."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

START = Path(__file__).with_name("start_network.sh")


@contextmanager
def official_network(shared: Path, plc_port: int, *flags: str) -> Iterator[dict[str, Any]]:
    """Start a network of its own, with its two PDSs on the ports after the directory's; gives its manifest.

    The servers are installed once into $REALPDS_HOME (by default in the user's cache), by one module at a time.
    """
    home = Path(os.environ.get("REALPDS_HOME", Path.home() / ".cache" / "backfill_dagster_realpds"))
    home.mkdir(parents=True, exist_ok=True)
    manifest = home / f"manifest-{plc_port}.json"
    ports = ["--plc-port", f"{plc_port}", "--pds-ports", f"{plc_port + 1},{plc_port + 2}"]
    with (home / ".installing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [str(START), str(shared / "realpds"), str(home), *ports, "--manifest", str(manifest), *flags],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        ready = any(line.startswith("READY ") for line in iter(process.stdout.readline, ""))
    try:
        with process.stdout:
            if not ready:
                pytest.fail("the official network did not start")
            yield json.loads(manifest.read_text())
    finally:
        process.terminate()
        process.wait(timeout=30)
