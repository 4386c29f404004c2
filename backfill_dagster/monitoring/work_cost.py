"""What a piece of work costs in the process that does it: told with its result, and counted where it was asked for.

Worker processes import this module, so that it imports nothing heavy.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.monitoring.memory import peak_memory

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class WorkCost:
    """Seconds spent on the work itself and, apart from them, on writing; the process, and its peak memory in bytes."""

    seconds: float = 0.0
    write_seconds: float = 0.0
    process: int = 0
    peak_bytes: int = 0


class WorkClock:
    """Runs from when it is made; tells apart what is spent on writing."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._writing = 0.0
        self._depth = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Count the time of the block as spent on writing; within another such block it is counted already."""
        begun = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._writing += time.perf_counter() - begun

    def cost(self) -> WorkCost:
        """Return what it has come to by now."""
        passed = time.perf_counter() - self._begun
        return WorkCost(passed - self._writing, self._writing, os.getpid(), peak_memory())
