"""The benchmarks: what the pipeline costs, against other ways to the same records and against its goals.

    python -m backfill_dagster_tests.benchmarks [CAR ...] [--only NAME ...] [--rounds N] [--json FILE]

Everything takes about half an hour and needs an otherwise idle machine: the figures are ratios of what ran side by
side, but a neighbour that comes and goes within a round shows all the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster_tests.benchmarks.measure import Options, goals_text, report_json, report_text

if TYPE_CHECKING:
    from backfill_dagster_tests.benchmarks.measure import Report

BENCHMARKS = (
    "one_process",
    "real_cars",
    "workers",
    "pruning",
    "memory",
    "http_client",
    "list_records",
    "dagster_share",
    "start_up",
)


def main() -> None:
    """Run the benchmarks that are asked for, and print each report as it comes and all goals at last."""
    arguments = _arguments()
    reports: list[Report] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        options = Options(folder, arguments.rounds, tuple(arguments.cars), arguments.atcute)
        _say(machine() + "\n")
        for name in arguments.only:
            module = importlib.import_module(f"{__package__}.{name}")
            for report in module.run(options):
                reports.append(report)
                _say(report_text(report))
    goals = [goal for report in reports for goal in report.goals]
    _say(f"## Goals\n\n{goals_text(goals)}\n\n{machine()}")
    if arguments.json is not None:
        told = {"machine": machine(), "rounds": arguments.rounds, "reports": list(map(report_json, reports))}
        arguments.json.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = [name for name in BENCHMARKS if find_spec(f"{__package__}.{name}")]
    parser.add_argument("cars", nargs="*", type=Path, metavar="CAR", help="exports to measure with as well")
    parser.add_argument(
        "--only", nargs="+", choices=there, default=there, metavar="NAME", help=", ".join(there)
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the reports as JSON")
    parser.add_argument("--atcute", action="store_true", help="install and measure @atcute/repo in Node")
    parser.add_argument("--folder", type=Path, help="where to work; kept. A temporary folder if left out")
    return parser.parse_args()


def machine() -> str:
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load}."


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
