"""What libraries read from the environment when they are loaded; it loads none itself."""

from __future__ import annotations

import os

# Polars' allocator would keep what is freed for ten seconds, in which a process has gone on to other work: by then it
# holds the most that any kind of work has needed, of each kind at once.
_FREED = "dirty_decay_ms:200,muzzy_decay_ms:0"
_ALLOCATORS = {
    "_RJEM_MALLOC_CONF": _FREED,
    # Arrow's would keep it for good.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
_OF_WORKERS = {
    **_ALLOCATORS,
    "_RJEM_MALLOC_CONF": f"narenas:1,{_FREED}",
    # One thread per worker: the cores are already shared out among the workers. NumPy's library would start its own
    # at once, which takes a fifth of the time that a worker needs to begin.
    "POLARS_MAX_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def set_allocators_up() -> None:
    """Have libraries that are yet to be loaded give back the memory that they have freed, if nothing else is set."""
    for name, value in _ALLOCATORS.items():
        os.environ.setdefault(name, value)


def set_worker_up() -> None:
    """Set a worker process's environment for libraries that are yet to be loaded."""
    os.environ.update(_OF_WORKERS)
