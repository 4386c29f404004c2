"""The processes that do the work of the processor: one per core, started once, shared by the stages of a run.

This module imports nothing heavy, so that a worker can set itself up before Polars reads its environment.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import cache


@cache
def worker_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Return this process's pool of workers; one per core unless told.

    Spawned rather than forked: the parent has threads of its own by the time it needs workers.
    """
    return ProcessPoolExecutor(
        max_workers=workers or os.cpu_count() or 1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_set_up,
    )


def _set_up() -> None:
    # One Polars thread per worker: the cores are already shared out among the workers.
    os.environ["POLARS_MAX_THREADS"] = "1"
    # Work is acyclic and short-lived, and the collector would walk millions of live objects for nothing.
    gc.disable()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A worker holds both ends of its own queue and would wait for ever after its parent was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
