"""Debian's Postgres and Redis, each of a test's own: in a temporary folder, on a free port of loopback."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backfill_dagster_tests.deployment.dagster_dev import free_port

_PATIENCE_SECONDS = 60
_USER = "postgres"
_DATABASE = "backfill_dagster"
_SET = ("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")


@contextmanager
def postgres() -> Iterator[str]:
    """Run a Postgres with an empty database until the block ends; gives its URL, as SQLAlchemy takes it."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    folder, port = Path(tempfile.mkdtemp(prefix="backfill-postgres-")), free_port()
    user: str | None = None
    if os.geteuid() == 0:
        # It refuses to run as root.
        shutil.chown(folder, _USER)
        user = _USER
    data = folder / "data"
    try:
        _run(programs / "initdb", "-D", data, "-U", _USER, "-A", "trust", "--no-sync", user=user)
        process = subprocess.Popen(
            [
                str(programs / "postgres"),
                "-D",
                str(data),
                "-p",
                str(port),
                "-k",
                str(folder),
                *_SET,
            ],
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            there = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
            _wait(process, lambda: subprocess.run(there, check=False).returncode == 0)
            _run(programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", _USER, _DATABASE)
            yield f"postgresql+psycopg2://{_USER}@127.0.0.1:{port}/{_DATABASE}"
        finally:
            # Its children end with it; whoever is connected does not keep it.
            _run(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop", check=False, user=user)
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis() -> Iterator[str]:
    """Run a Redis that writes nothing to disk until the block ends; gives its URL."""
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        ping = ["redis-cli", "-p", str(port), "ping"]
        _wait(process, lambda: subprocess.run(ping, check=False, capture_output=True).stdout == b"PONG\n")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _run(*command: str | Path, check: bool = True, user: str | None = None) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", user=user)
    assert not check or done.returncode == 0, done.stderr


def _wait(process: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_there():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it does not answer"
        time.sleep(0.1)
