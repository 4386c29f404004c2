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


MEMORY = """
from backfill_dagster.workers import worker_pool

ASK = "(__import__('polars').thread_pool_size(), __import__('pyarrow').default_memory_pool().backend_name)"
SET = "__import__('os').environ['_RJEM_MALLOC_CONF'] if 'polars' not in __import__('sys').modules else None"

with worker_pool(1) as pool:
    print("decay" in pool.submit(eval, SET).result(), pool.submit(eval, ASK).result())
"""


def test_the_libraries_of_a_worker_give_memory_back(tmp_path: Path) -> None:
    """What they read from the environment they read once, when they are loaded."""
    program = tmp_path / "program.py"
    program.write_text(MEMORY)
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True (1, 'system')\n", done.stderr


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
