"""What the libraries of a worker process read from its environment when they are loaded; it loads none itself."""

from __future__ import annotations

import os

_SETTINGS = {
    # One thread per worker: the cores are already shared out among the workers. NumPy's library would start its own
    # at once, which takes a fifth of the time that a worker needs to begin.
    "POLARS_MAX_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Polars' allocator would keep what is freed for ten seconds, in which a worker has gone on to other work: by then
    # it holds the most that any kind of work has needed, of each kind at once.
    "_RJEM_MALLOC_CONF": "narenas:1,dirty_decay_ms:200,muzzy_decay_ms:0",
    # Arrow's would keep it for good.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def set_libraries_up() -> None:
    """Set this process's environment for libraries that are yet to be loaded."""
    os.environ.update(_SETTINGS)
