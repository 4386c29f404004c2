"""How long a caller waits for a host, and in what way."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from backfill_dagster.errors import BackfillError

Wait: TypeAlias = Callable[[Callable[[], float]], Awaitable[None]]
"""Waits for so many seconds; asks how many only when it begins to, since it may have to queue for that."""


class RunOverError(BackfillError):
    """A request that was not made, because the run may begin nothing more."""


class RunTime:
    """The time in which a run may begin something; without a limit in seconds it never ends."""

    def __init__(self, seconds: float | None = None) -> None:
        self._ends_at = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left of it."""
        return max(0.0, self._ends_at - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.left == 0

    def check(self) -> None:
        """Raise RunOverError if it is over."""
        if self.is_over:
            raise RunOverError("processing.max_run_minutes is over")


_ENDLESS = RunTime()


async def wait_in_place(seconds: Callable[[], float]) -> None:
    """Wait, and keep whatever the caller holds."""
    await asyncio.sleep(seconds())


@dataclass(frozen=True, slots=True)
class Patience:
    """What one who asks puts up with.

    A host may ask for nothing but pauses for `max_park` seconds; they are waited out by `wait`, in which the
    caller can lay down what others need. After `run_time` nothing is asked.
    """

    max_park: float = math.inf
    run_time: RunTime = _ENDLESS
    wait: Wait = wait_in_place
