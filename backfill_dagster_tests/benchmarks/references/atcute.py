"""The fastest reader in JavaScript, `@atcute/repo` in Node: walk, decode, CID and JSON; nothing is verified."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster_tests.benchmarks.measure import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PACKAGES = ("@atcute/repo@1.0.2", "@atcute/car@6.0.2", "@atcute/cbor@2.3.6", "@atcute/cid@2.4.2")
_CACHE = Path.home() / ".cache" / "backfill_dagster_benchmarks" / "atcute-1.0.2"
_SCRIPT = Path(__file__).with_name("atcute.mjs")


class NoNodeError(Exception):
    """Node, npm or the packages are not to be had; says which."""


def install(folder: Path = _CACHE) -> Path:
    """Install the packages with npm, unless they are there, and return the module of the reader.

    Raises NoNodeError.
    """
    entry = folder / "node_modules" / "@atcute" / "repo" / "dist" / "index.js"
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        raise NoNodeError("node and npm are not installed")
    if not entry.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # No package's own scripts run, and no project above the folder takes part.
        command = [
            npm,
            "install",
            "--prefix",
            str(folder),
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            *PACKAGES,
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoNodeError(f"npm could not install {', '.join(PACKAGES)}: {done.stderr.strip()[-500:]}")
    return entry


@contextmanager
def reader(entry: Path) -> Iterator[Callable[[Sequence[Path]], Cost]]:
    """Start Node, so that its compiler is warm from the second round on; lend what reads files in it."""
    command = ["node", str(_SCRIPT), str(entry)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None
        assert node.stdout is not None

        def read(cars: Sequence[Path]) -> Cost:
            assert node.stdin is not None
            assert node.stdout is not None
            node.stdin.write(json.dumps([str(car) for car in cars]) + "\n")
            node.stdin.flush()
            told = json.loads(node.stdout.readline())
            return Cost(told["cpu"], told["wall"])

        try:
            yield read
        finally:
            node.stdin.close()
            node.wait()
