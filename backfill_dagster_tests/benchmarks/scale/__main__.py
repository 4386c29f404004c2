"""How a study grows: the real definitions on a simulated network of the real frame's skew, from few accounts to all.

    python -m backfill_dagster_tests.benchmarks.scale [--rungs 4000,40000,383598] [--folder PATH] [--json FILE]

A server on loopback is the PLC directory and all hosts; `dagster job execute` runs the study on it, as a command line
does, with all that a study has. The accounts of each rung are dealt out to 340 hosts as 383,598 real ones are, and once
to 3,000; one record stands for 250 of a real repository, and in one rung for fewer, which tells the cost of accounts
and of records apart.

All rungs together take about an hour of an idle machine with two cores, most of it the last one. With `--folder`, what
a rung came to is kept there: one that has been run is not run again, so that the rungs can be run one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster_tests.benchmarks.__main__ import machine
from backfill_dagster_tests.benchmarks.measure import goals_text, report_json, report_text
from backfill_dagster_tests.benchmarks.scale.frame import FRAME_ACCOUNTS, FRAME_HOSTS
from backfill_dagster_tests.benchmarks.scale.reports import (
    hosts_report,
    ladder_reports,
    share_report,
    wall_time_report,
)
from backfill_dagster_tests.benchmarks.scale.rung import Rung, RungSettings, climb, rung_json, rung_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster_tests.benchmarks.measure import Report

_RUNGS = (4_000, 40_000, FRAME_ACCOUNTS)
_MANY_HOSTS = 3_000
# One record that is written stands for so many of a real repository.
_SHRINK, _LESS_SHRUNK = 250.0, 10.0
# More accounts than these are not run without Dagster as well.
_BOTH_WAYS = 5_000


def main() -> None:
    """Run the rungs that are asked for, and print each report and all goals."""
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        _say(machine() + "\n")
        reports = run(
            folder, options.rungs, options.hosts, options.many_hosts, options.shrink, options.less_shrunk
        )
    goals = [goal for report in reports for goal in report.goals]
    for report in reports:
        _say(report_text(report))
    _say(f"## Goals\n\n{goals_text(goals)}\n\n{machine()}")
    if options.json is not None:
        told = {"machine": machine(), "reports": list(map(report_json, reports))}
        options.json.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def run(
    folder: Path, rungs: Sequence[int], hosts: int, many_hosts: int, shrink: float, less_shrunk: float
) -> list[Report]:
    """Run the rungs, or read what they came to, and tell of them.

    `many_hosts` and `less_shrunk` are of one rung more each, which 0 leaves out.
    """
    ladder = [_rung(folder, RungSettings(accounts, hosts, shrink)) for accounts in sorted(rungs)]
    reports = ladder_reports(ladder)
    both_ways = list(ladder)
    # Of as many accounts as there are hosts, at least.
    least = next((rung for rung in ladder if rung.settings.accounts >= many_hosts), None)
    if many_hosts and least is not None:
        many = _rung(folder, RungSettings(least.settings.accounts, many_hosts, shrink))
        both_ways.append(many)
        reports.append(hosts_report(least, many))
    reports.append(share_report(both_ways))
    if less_shrunk and len(ladder) > 1:
        heavy = _rung(folder, RungSettings(ladder[0].settings.accounts, hosts, less_shrunk))
        reports += wall_time_report(ladder[0], ladder[-1], heavy)
    return reports


def _rung(folder: Path, settings: RungSettings) -> Rung:
    told = folder / f"{settings.name}.json"
    if not told.exists():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            rung = climb(Path(place, "study"), settings, without_dagster=settings.accounts <= _BOTH_WAYS)
        told.write_text(json.dumps(rung_json(rung), indent=2) + "\n")
    return rung_of(json.loads(told.read_text()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rungs", type=_numbers, default=_RUNGS, help="accounts of each rung, with commas")
    parser.add_argument("--hosts", type=int, default=FRAME_HOSTS, help="hosts of each rung")
    parser.add_argument("--many-hosts", type=int, default=_MANY_HOSTS, help="hosts of one more; 0 for none")
    parser.add_argument("--shrink", type=float, default=_SHRINK, help="real records for one that is written")
    parser.add_argument(
        "--less-shrunk", type=float, default=_LESS_SHRUNK, help="the same of one more rung; 0 for none"
    )
    parser.add_argument("--folder", type=Path, help="where to work, and to keep what each rung came to")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the reports as JSON")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number.replace("_", "")) for number in text.split(","))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
