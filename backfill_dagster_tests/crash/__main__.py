"""Kills a run before and after every write, rename and removal of the project, and at random moments.

    python -m backfill_dagster_tests.crash [--jobs N] [--random N] [--only TEXT] [--folder PATH]

Every failpoint that an undisturbed run passes is one case: a run is killed there, the same command is run again, and
what `runs` describes is checked; first for a collection, then for a purge, then for a
collection that asks for less than repositories. Each is tried the first time that a process
passes it, and a rename or removal once more in the middle. Besides, a worker alone is killed at each of its
failpoints in a pack. Ends with a list of what did not hold, and a non-zero exit if there is anything on it.
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

from backfill_dagster_tests.crash.launcher import Launcher
from backfill_dagster_tests.crash.runs import CrashLab, CrashRun, Failpoint

if TYPE_CHECKING:
    from collections.abc import Callable

HELD, NOT_REACHED, FAILED = "held", "not reached", "failed"


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="cases at once")
    parser.add_argument("--random", type=int, default=25, help="kills at random moments, for each task")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--folder", type=Path, help="where to work; kept. A temporary folder if left out")
    options = parser.parse_args()
    started = time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="crash-"))
    launcher = Launcher()
    collecting = CrashLab.collecting(folder, launcher)
    purging = CrashLab.purging(folder, collecting, launcher)
    results: Counter[str] = Counter()
    for lab in (collecting, purging, CrashLab.in_parts(folder, launcher)):
        cases = {
            name: case
            for name, case in _cases(lab, options.random, options.seed).items()
            if options.only in name
        }
        _say(f"{lab.task}: {len(lab.passed)} failpoints, {len(cases)} cases, {lab.seconds:.1f} s undisturbed")
        results += _run_all(lab, cases, options.jobs)
    _say(f"{dict(results)} in {time.monotonic() - started:.0f} s")
    if options.folder is None and not results[FAILED]:
        shutil.rmtree(folder)
    return 1 if results[FAILED] else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _cases(lab: CrashLab, moments: int, seed: int) -> dict[str, Callable[[CrashRun], str]]:
    first = [Failpoint(name) for name in lab.passed]
    middle = [
        Failpoint(name, number // 2 + 1)
        for name, number in lab.passed.items()
        if number > 2 and name.split()[1] in ("replace", "unlink")
    ]
    cases: dict[str, Callable[[CrashRun], str]] = {
        str(point): partial(_at_failpoint, lab, point) for point in (*first, *middle)
    }
    for point in lab.failpoints("worker", "packs.py"):
        cases[f"worker alone: {point}"] = partial(_without_worker, lab, point)
    chance = random.Random(seed)
    for number in range(moments):
        seconds, whole_group = chance.uniform(0.2, 0.9 * lab.seconds), number % 2 == 0
        name = f"after {seconds:.2f} s, {'the whole group' if whole_group else 'the parent alone'}"
        cases[name] = partial(_at_moment, lab, seconds, whole_group)
    return cases


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
            if result != HELD:
                _say(f"{futures[future]}: {result}")
            if results.total() % 20 == 0:
                _say(f"{results.total()} of {len(cases)}: {dict(results)}")
    return results


def _run_one(lab: CrashLab, name: str, case: Callable[[CrashRun], str]) -> str:
    run = lab.new_run(name)
    try:
        result = case(run)
    except Exception:  # noqa: BLE001  one case that fails is reported, and the others go on
        return f"{FAILED}\n{run.folder}\n{traceback.format_exc()}"
    shutil.rmtree(run.folder)
    return result


def _at_failpoint(lab: CrashLab, point: Failpoint, run: CrashRun) -> str:
    if not run.run(point, lock="resources.py" in point.name):
        # Which worker does how much is for the moment to decide; the first time is passed by one of them.
        return NOT_REACHED if point.number > 1 else f"{FAILED}\nthe failpoint was not reached"
    run.check_after_kill()
    return _run_again(lab, run)


def _without_worker(lab: CrashLab, point: Failpoint, run: CrashRun) -> str:
    assert run.run_without_worker(point) == 1
    assert "WorkerLostError: a worker process was ended from outside" in run.output()
    run.check_after_kill()
    return _run_again(lab, run)


def _at_moment(lab: CrashLab, seconds: float, whole_group: bool, run: CrashRun) -> str:
    while not run.kill_after(seconds, whole_group=whole_group):
        # It was over before: begun anew, it is killed sooner.
        seconds *= 0.7
        run = lab.new_run(f"{run.folder.name}-sooner")
    return _run_again(lab, run)


def _run_again(lab: CrashLab, run: CrashRun) -> str:
    settled = run.settled()
    run.run()
    run.check_after_next_run(settled, lab.reference)
    return HELD


if __name__ == "__main__":
    sys.exit(main())
