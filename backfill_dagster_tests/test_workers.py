"""What a worker process is: lean, and independent of the program that started it."""

import subprocess
import sys
from pathlib import Path

from backfill_dagster_tests.conftest import ROOT

PROGRAM = """
import sys
import wave  # stands for all that a program may load at its beginning, as the `dagster` command does
from backfill_dagster.workers import worker_pool

WORK = "[__import__(name) for name in ('backfill_dagster.repos.proof', 'backfill_dagster.records.conversion')]"
LOADED = "sorted(set(__import__('sys').modules) & {'wave', 'dagster', 'matplotlib', 'aiohttp', 'polars'})"

with worker_pool(1) as pool:
    pool.submit(eval, WORK + " and None").result()
    print(pool.submit(eval, LOADED).result(), "wave" in sys.modules)
"""


def test_a_worker_loads_what_its_work_needs_and_not_the_program_that_started_it(tmp_path: Path) -> None:
    """The program has no guard around its beginning either: a worker that ran it again would start workers itself."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "['polars'] True\n", done.stderr
