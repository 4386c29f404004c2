"""The processes that do the work of the processor, for the time of one stage.

This module imports nothing heavy, so that a worker can set itself up before Polars reads its environment.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any

from backfill_dagster.errors import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Iterator


_LOST = (
    "a worker process was ended from outside, most likely for want of memory; run the same again to go on, "
    "with a smaller processing.workers or processing.pack_megabytes if it happens again"
)


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Lend a pool of workers; at the end, what was not begun is dropped and what was is waited for.

    Spawned rather than forked: the parent has threads of its own by the time it needs workers. Ended with the
    stage rather than with the process: a step of Dagster's is a child process itself, and such a one waits for
    its own children before it tells a pool that is still open to end them.
    """
    pool = ProcessPoolExecutor(max_workers=workers, mp_context=_WorkerContext(), initializer=_set_up)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise WorkerLostError(_LOST) from error
    except BaseExceptionGroup as group:
        if group.subgroup(BrokenProcessPool) is None:
            raise
        raise WorkerLostError(_LOST) from group
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _WorkerProcess(SpawnProcess):
    """A spawned process that does not load the program which spawned it.

    Python would have each of them load the main module again, so that what is defined there could be sent to it. The
    main module here is the `dagster` command as a rule, whose import takes longer than many a worker's whole work.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  what multiprocessing calls to start it
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


# What the libraries of a worker read when they are loaded.
_ENVIRONMENT = {
    # One Polars thread per worker: the cores are already shared out among the workers.
    "POLARS_MAX_THREADS": "1",
    # Polars' allocator would keep what is freed for ten seconds, in which a worker has gone on to other work: by then
    # it holds the most that any kind of work has needed, of each kind at once.
    "_RJEM_MALLOC_CONF": "narenas:1,dirty_decay_ms:200,muzzy_decay_ms:0",
    # Arrow's would keep it for good.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def _set_up() -> None:
    os.environ.update(_ENVIRONMENT)
    # Work is acyclic and short-lived, and the collector would walk millions of live objects for nothing.
    gc.disable()
    # Ctrl-C reaches the whole process group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # A worker holds both ends of its own queue and would wait for ever after its parent was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
