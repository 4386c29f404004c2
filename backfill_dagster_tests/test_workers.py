"""What a worker process is: lean, and independent of the program that started it."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from backfill_dagster.workers import as_they_end
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

with worker_pool(1) as pool:
    print(pool.submit(eval, ASK).result())
"""

PARENT = """
import os
import backfill_dagster.pipeline
import pyarrow

# Polars puts its own choice before what it is told.
print(pyarrow.default_memory_pool().backend_name, os.environ["_RJEM_MALLOC_CONF"].split(",")[2:])
"""

ORDER = """
import os
import sys

READ = {"polars": "_RJEM_MALLOC_CONF", "numpy": "OPENBLAS_NUM_THREADS", "pyarrow": "ARROW_DEFAULT_MEMORY_POOL"}

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in READ:
            print(name, READ[name] in os.environ)

sys.meta_path.insert(0, Watch())
import backfill_dagster.worker_libraries
"""

FORKED = """
import os
from backfill_dagster.workers import worker_pool

def parent():
    with worker_pool(1) as pool:
        os.environ["TOLD"] = os.environ.get("TOLD", "") + "more"
        return pool.submit(eval, "(__import__('os').getppid(), __import__('os').environ.get('TOLD'))").result()

(first, before), (second, after) = parent(), parent()
print(first == second, before, after, os.getpid() in (first, second))
"""


def output_of(folder: Path, text: str) -> str:
    """Return what a program prints that is started as a file of its own."""
    program = folder / "program.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, program],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_libraries_of_a_worker_give_memory_back(tmp_path: Path) -> None:
    """What they read from the environment they read once, when they are loaded."""
    assert output_of(tmp_path, MEMORY) == "(1, 'system')\n"
    assert set(output_of(tmp_path, ORDER).splitlines()) == {"numpy True", "polars True", "pyarrow True"}


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_pools_share_what_has_loaded_the_libraries_and_not_its_environment(tmp_path: Path) -> None:
    assert output_of(tmp_path, FORKED) == "True None more False\n"


def test_a_worker_loads_what_its_work_needs_and_not_the_program_that_started_it(tmp_path: Path) -> None:
    """The program has no guard around its beginning either: a worker that ran it again would start workers itself."""
    assert output_of(tmp_path, PROGRAM) == "['polars'] True\n"


def test_the_process_that_runs_a_study_gives_memory_back_unless_told_otherwise(tmp_path: Path) -> None:
    assert output_of(tmp_path, PARENT) == "system ['dirty_decay_ms:200', 'muzzy_decay_ms:0']\n"
    told = 'import os\nos.environ["_RJEM_MALLOC_CONF"] = "narenas:2"\n' + PARENT
    assert output_of(tmp_path, told) == "system ['narenas:2']\n"


def test_work_is_submitted_as_work_ends() -> None:
    submitted: list[Future[int]] = []

    def submit() -> Iterator[Future[int]]:
        for number in range(20):
            submitted.append(Future())
            # All but the first one are done before anybody waits for them.
            if number:
                submitted[-1].set_result(number)
            yield submitted[-1]

    found = []
    for future in as_they_end(submit(), 1):
        found.append(future.result())
        assert len(submitted) <= len(found) + 8
        if len(found) == 19:
            submitted[0].set_result(0)
    assert sorted(found) == list(range(20))
    assert found[-1] == 0
