"""Change a study's stored files in many ways, and see whether a verification finds each.

    python -m backfill_dagster_tests.verification [--mutations 1000] [--seed N]

Ends with 1 if any was not found. The tests make a few of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from backfill_dagster.frozen.freeze import freeze
from backfill_dagster.verification.verify import verify
from backfill_dagster_tests.verification.mutations import run
from backfill_dagster_tests.verification.studies import collected_study, copy_of


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m backfill_dagster_tests.verification", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        collected = collected_study(Path(folder), snapshot="v1")
        assert verify(collected).holds
        freeze(collected)
        # Of a copy no file has two names, so that what is done to one is done to that alone.
        study = copy_of(collected, Path(folder) / "copy")
        assert verify(study).holds
        tally = run(study, Path(folder), arguments.seed, iter(range(1, arguments.mutations + 1)))
    for kind, number in sorted(tally.made.items()):
        sys.stdout.write(f"{number:>7,}  {kind}\n")
    for missed in tally.missed:
        sys.stdout.write(f"not found: {missed}\n")
    sys.stdout.write(
        f"{len(tally.missed)} not found, {time.monotonic() - started:.0f} s, seed {arguments.seed}\n"
    )
    return 1 if tally.missed else 0


if __name__ == "__main__":
    sys.exit(main())
