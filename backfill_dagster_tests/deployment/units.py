"""The systemd units of the examples: what they say, and their services started without systemd."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from backfill_dagster_tests.conftest import ROOT

EXAMPLES = ROOT / "configs/deploy"
# Where the examples have the project and its configuration.
PROGRAMS, CONFIGURATION = "/opt/backfill/.venv/bin/", "/etc/backfill/"
CODE_PORT, WEB_PORT = "4000", "3000"
_END_SECONDS = 20


def settings(unit: Path, name: str) -> list[str]:
    """Return every value that a unit gives a setting, in order."""
    lines = (line.partition("=") for line in unit.read_text(encoding="utf-8").splitlines())
    return [value for key, _, value in lines if key == name]


def commands(unit: Path, name: str, places: Mapping[str, str]) -> list[list[str]]:
    """Return the commands of a unit's setting as lists, with what stands for other places put in."""
    found = []
    for command in settings(unit, name):
        for place, other in places.items():
            command = command.replace(place, other)
        found.append(shlex.split(command.replace("%%", "%")))
    return found


@dataclass
class Services:
    """Services that run in a folder, each with a log; nothing of them stays alive when they are ended."""

    folder: Path
    environment: dict[str, str]
    places: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, unit: Path, instance: str = "") -> None:
        """Start a unit; one whose name ends with an @ as the instance that is named."""
        name, places = unit.stem + instance, {**self.places, "%i": instance}
        with (self.folder / f"{name}.log").open("ab") as log:
            for command in commands(unit, "ExecStartPre", places):
                subprocess.run(
                    command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, check=True
                )
            [command] = commands(unit, "ExecStart", places)
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """End a service at once with all of its processes, as a machine does that is switched off."""
        process = self.processes.pop(name)
        _kill_group(process.pid)
        process.wait()

    def is_alive(self) -> bool:
        """Tell whether all run."""
        return all(process.poll() is None for process in self.processes.values())

    def log(self) -> str:
        """Return the end of what each of them printed."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs)

    def end(self) -> None:
        """End them all, the latest first."""
        for process in reversed(list(self.processes.values())):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _kill_group(process.pid)
            process.wait()


@contextmanager
def services(
    folder: Path, example: Path, environment: Mapping[str, str], ports: tuple[int, int]
) -> Iterator[Services]:
    """Lend what starts an example's units until the block ends, with other ports of code and web server."""
    places = {
        PROGRAMS: f"{Path(sys.executable).parent}/",
        CONFIGURATION: f"{folder}/",
        f"-p {CODE_PORT}": f"-p {ports[0]}",
        f"-p {WEB_PORT}": f"-p {ports[1]}",
    }
    workspace = (example / "workspace.yaml").read_text(encoding="utf-8")
    (folder / "workspace.yaml").write_text(workspace.replace(f"port: {CODE_PORT}", f"port: {ports[0]}"))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    lent = Services(folder, {**inherited, **environment, "DAGSTER_HOME": str(folder)}, places)
    try:
        yield lent
    finally:
        lent.end()


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
