"""Fuzz verification and tables with mutated repositories of official PDS software.

    python -m backfill_dagster_tests.fuzz [--mutations 100000] [--seed N] [--workers 2] [--only NUMBER]

Half of the mutations change a file's bytes blindly, half change a record, a node, the commit or a section, then mend
all hashes up to the root and sign again. What must hold for each is said in `judge.py`. A case is made of the seed
and its number alone; `--only` makes and judges one again.

Ends with 1 if anything was found. The tests run a small part of this; `pytest -m fuzz` runs all of it.
"""

from __future__ import annotations

import argparse
import sys
import time

from backfill_dagster_tests.fuzz.campaign import report, run_campaign
from backfill_dagster_tests.fuzz.cases import make_case
from backfill_dagster_tests.fuzz.judge import judge_file, judge_tables

MUTATIONS = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m backfill_dagster_tests.fuzz", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--mutations", type=int, default=MUTATIONS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="judge one case and say what became of it")
    arguments = parser.parse_args()
    if arguments.only is not None:
        return _judge_one(arguments.seed, arguments.only)
    started = time.monotonic()
    tally = run_campaign(arguments.seed, arguments.mutations, arguments.workers, _show)
    _show(report(tally))
    _show(f"{time.monotonic() - started:.0f} s with {arguments.workers} workers, seed {arguments.seed}")
    return 1 if tally.findings else 0


def _judge_one(seed: int, number: int) -> int:
    verdict = judge_file(make_case(seed, number))
    findings = list(verdict.findings)
    _show(
        f"{verdict.case}: {len(verdict.case.car)} bytes, {verdict.outcome} in {verdict.seconds * 1000:.1f} ms"
    )
    if verdict.repo is not None:
        tables = judge_tables([verdict])
        findings += tables.findings
        _show(f"{tables.records} records laid out in {tables.seconds * 1000:.1f} ms")
    for finding in findings:
        _show(finding)
    return 1 if findings else 0


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
