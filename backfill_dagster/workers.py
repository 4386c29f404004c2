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
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.context import (
    BaseContext,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from backfill_dagster.errors import WorkerLostError
from backfill_dagster.library_environment import set_worker_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from backfill_dagster.stores.location import Location

# Files that are looked through, or made again, sooner than worker processes are started.
SMALL_BYTES = 64 * 2**20
# Pieces of work that wait for each worker.
_AHEAD = 4
_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")
_LOST = (
    "a worker process was ended from outside, most likely for want of memory; run the same again to go on, "
    "with a smaller processing.workers or processing.pack_megabytes if it happens again"
)


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Lend a pool of workers; at the end, what was not begun is dropped and what was is waited for.

    Forked off a process that has loaded their libraries and done nothing since, rather than off this one, which has
    threads of its own by the time it needs workers; to load them takes longer than many a pool's whole work. Ended
    with the stage rather than with the process: a step of Dagster's is a child process itself, and such a one waits
    for its own children before it tells a pool that is still open to end them.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=_context(), initializer=_set_up, initargs=(dict(os.environ),)
    )
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


def as_they_end(futures: Iterator[Future[_Result]], workers: int) -> Iterator[Future[_Result]]:
    """Yield the futures of work for so many workers as each ends.

    They are submitted by drawing them, so that what all of it needs is not held at once: enough that no worker waits.
    """
    waiting = set(islice(futures, _AHEAD * workers))
    while waiting:
        ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from ended
        waiting.update(islice(futures, len(ended)))


def work_on(
    root: Location, work: Callable[[Location, _Piece], _Result], pieces: Iterable[_Piece], workers: int
) -> Iterator[_Result]:
    """Yield what the work on each piece of the study at `root` comes to, in order; in this process if no `workers`."""
    if not workers:
        yield from (work(root, piece) for piece in pieces)
        return
    with worker_pool(workers) as pool:
        submitted = (pool.submit(work, root, piece) for piece in pieces)
        waiting = deque(islice(submitted, _AHEAD * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(islice(submitted, 1))


@contextmanager
def _main_unknown() -> Iterator[None]:
    """Keep from the processes that are started in this block what program it is that starts them.

    Python would have each of them load the main module again, so that what is defined there could be sent to it. The
    main module here is the `dagster` command as a rule, whose import takes longer than many a worker's whole work.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Forked(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  what multiprocessing calls to start it
        with _main_unknown():
            return ForkServerProcess._Popen(process_obj)


class _Spawned(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        with _main_unknown():
            return SpawnProcess._Popen(process_obj)


class _ForkingContext(ForkServerContext):
    Process = _Forked


class _SpawningContext(SpawnContext):
    Process = _Spawned


def _context() -> BaseContext:
    # Elsewhere the system's own libraries may not stand a fork.
    if sys.platform != "linux":
        return _SpawningContext()
    context = _ForkingContext()
    context.set_forkserver_preload(["backfill_dagster.worker_libraries"])
    return context


def _set_up(environment: dict[str, str]) -> None:
    """Make a worker of a new process, whose environment may be that of an earlier time."""
    os.environ.clear()
    os.environ.update(environment)
    set_worker_up()
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
