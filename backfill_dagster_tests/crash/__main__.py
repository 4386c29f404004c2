"""Kills a run before and after every write, rename and removal of the project, and at random moments.

    python -m backfill_dagster_tests.crash [--jobs N] [--random N] [--only TEXT] [--folder PATH]

Every failpoint that an undisturbed run passes is one case: a run is killed there, the same command is run again, and
what `runs` describes is checked. A place that one process passes several times is tried the first time and once more
in the middle. Ends with a list of what did not hold, and a non-zero exit if there is anything on it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster_tests.crash.runs import CrashLab, CrashRun, Failpoint

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="cases at once")
    parser.add_argument("--random", type=int, default=25, help="kills at random moments besides")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--only", default="", help="only failpoints whose name holds this text")
    parser.add_argument("--folder", type=Path, help="where to work; kept. A temporary folder if left out")
    options = parser.parse_args()
    started = time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="crash-"))
    lab = CrashLab(folder / "lab")
    points = [point for point in _chosen(lab) if options.only in str(point)]
    print(f"{len(lab.passed)} failpoints; an undisturbed run takes {lab.seconds:.1f} s", flush=True)
    cases: dict[str, Callable[[CrashRun], str]] = {str(point): partial(_at_failpoint, lab, point) for point in points}
    chance = random.Random(options.seed)
    for number in range(options.random):
        seconds, whole_group = chance.uniform(0.2, 1.2 * lab.seconds), number % 2 == 0
        name = f"after {seconds:.2f} s, {'the whole group' if whole_group else 'the parent alone'}"
        cases[name] = partial(_at_moment, lab, seconds, whole_group)
    results = _run_all(lab, cases, options.jobs)
    print(f"{dict(results)} in {time.monotonic() - started:.0f} s")
    if options.folder is None and not results["failed"]:
        shutil.rmtree(folder)
    return 1 if results["failed"] else 0


def _chosen(lab: CrashLab) -> list[Failpoint]:
    first = [Failpoint(name) for name in lab.passed]
    middle = [Failpoint(name, number // 2 + 1) for name, number in lab.passed.items() if number > 2]
    return first + middle


def _run_all(lab: CrashLab, cases: dict[str, Callable[[CrashRun], str]], jobs: int) -> Counter[str]:
    results: Counter[str] = Counter()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(_run_one, lab, f"case-{number}", case): name
            for number, (name, case) in enumerate(cases.items())
        }
        for future in as_completed(futures):
            result = future.result()
            results[result.partition("\n")[0]] += 1
            if result != "held":
                print(f"{futures[future]}: {result}", flush=True)
            if sum(results.values()) % 20 == 0:
                print(f"{sum(results.values())} of {len(cases)}: {dict(results)}", flush=True)
    return results


def _run_one(lab: CrashLab, name: str, case: Callable[[CrashRun], str]) -> str:
    run = lab.new_run(name)
    try:
        result = case(run)
    except Exception:  # noqa: BLE001  one case that fails is reported, and the others go on
        return f"failed\n{run.folder}\n{traceback.format_exc()}"
    shutil.rmtree(run.folder)
    return result


def _at_failpoint(lab: CrashLab, point: Failpoint, run: CrashRun) -> str:
    if not run.run(point, lock="resources.py" in point.name):
        # Which worker does how much is for the moment to decide; the first time is passed by one of them.
        return "not reached" if point.number > 1 else "failed\nthe failpoint was not reached"
    settled = run.check_after_kill()
    run.run()
    run.check_after_next_run(settled, lab.reference)
    return "held"


def _at_moment(lab: CrashLab, seconds: float, whole_group: bool, run: CrashRun) -> str:
    killed = run.kill_after(seconds, whole_group=whole_group)
    settled = run.settled()
    run.run()
    run.check_after_next_run(settled, lab.reference)
    return "held" if killed else "not reached"


if __name__ == "__main__":
    sys.exit(main())
