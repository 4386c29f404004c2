"""Starts the program that crash tests kill, each time in a process forked off one that has loaded what it needs.

    python -m backfill_dagster_tests.crash.launcher

To load it takes longer than most of the runs that are killed. Nothing was done in the process that it is forked off,
so that a run begins as in a new one. Reads a run per line (JSON), writes its process id, and `<id> <exit code>` when
it is over.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster_tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

FAILPOINTS = Path(__file__).parent / "failpoints"
LOADED = (
    *("backfill_dagster.pipeline", "backfill_dagster.handing_over", "backfill_dagster.purging"),
    *("backfill_dagster.report.page", "backfill_dagster.report.figures.all"),
    *("backfill_dagster.verification.verify", "backfill_dagster_tests.crash.scenario"),
    *("backfill_dagster.frozen.freeze", "backfill_dagster_tests.crash.shared"),
    *("backfill_dagster_tests.crash.watched", "backfill_dagster_tests.crash.command"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """What is run: a task on a folder, with these variables of the environment besides."""

    folder: str
    task: str
    lock: bool
    environment: Mapping[str, str]


class Started:
    """A run that was started, as `subprocess.Popen` is one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = threading.Event()
        self._code = 0

    def wait(self, seconds: float) -> int:
        """Wait for the end and return the exit code, negative for a signal; raises subprocess.TimeoutExpired."""
        if not self._ended.wait(seconds):
            raise subprocess.TimeoutExpired(str(self.pid), seconds)
        return self._code

    def end(self, code: int) -> None:
        """Note the end."""
        self._code = code
        self._ended.set()


@dataclass
class Launcher:
    """The process that runs are forked off; it lives as long as this one."""

    _runs: dict[int, Started] = field(default_factory=dict)
    _new: list[Started] = field(default_factory=list)
    _begun: threading.Condition = field(default_factory=threading.Condition)
    _process: subprocess.Popen[str] | None = None

    def start(self, command: Command) -> Started:
        """Start a run in a process group of its own."""
        with self._begun:
            if self._process is None:
                self._process = self._open()
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asdict(command)) + "\n")
            self._process.stdin.flush()
            assert self._begun.wait_for(lambda: self._new, timeout=60), "the launcher does not answer"
            return self._new.pop()

    def _open(self) -> subprocess.Popen[str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("FAILPOINTS_")}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env={**others, "PYTHONPATH": os.pathsep.join([str(FAILPOINTS), str(ROOT)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._follow, args=[process], daemon=True).start()
        return process

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            pid, *code = map(int, line.split())
            if code:
                self._runs.pop(pid).end(code[0])
                continue
            with self._begun:
                self._runs[pid] = started = Started(pid)
                self._new.append(started)
                self._begun.notify()


def main() -> None:
    """Fork a run off for each line that is read, until there is none any more."""
    for module in LOADED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, lambda *_: _tell_of_ended())
    for line in sys.stdin:
        # So that no run is over before it was told of.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            _become(Command(**json.loads(line)))
            return
        _say(f"{pid}")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _become(run: Command) -> None:
    """Be a new process that does this, and end as it does."""
    import sitecustomize  # type: ignore[import-not-found]  # that of the failpoints, by the path of this process

    from backfill_dagster_tests.crash import command

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    os.setsid()
    os.chdir(run.folder)
    os.environ.update(run.environment)
    random.seed()
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    sitecustomize.install_from_environment()
    try:
        command.main(Path(run.folder), run.task, lock=run.lock)
    except Exception:  # noqa: BLE001  as Python ends a program
        traceback.print_exc()
        sys.exit(1)


def _tell_of_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(f"{pid} {os.waitstatus_to_exitcode(status)}")


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
