"""How far a fetch is, in the run's log at a human pace."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill_dagster.repos.crawl import Progress

EVERY_SECONDS = 10.0


class ProgressLog:
    """Logs a line about a fetch's progress, at most one in so many seconds."""

    def __init__(
        self,
        log: Callable[[str], object],
        every: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._every = every
        self._clock = clock
        self._next = clock() + every

    def __call__(self, progress: Progress) -> None:
        """Take note of the progress made, and log it if it is time."""
        now = self._clock()
        if now >= self._next:
            self._next = now + self._every
            self._log(progress_line(progress, now))


def progress_line(progress: Progress, now: float) -> str:
    """Say how far a fetch is: accounts, rate, bytes, hosts, failures, and the time that the rest may take."""
    passed = max(now - progress.started, 1e-3)
    rate = progress.done / passed
    left = (progress.total - progress.done) / rate if rate else None
    parts = [
        f"{progress.done:,} of {progress.total:,} accounts",
        f"{rate:.1f}/s",
        f"{progress.bytes_received / 1e6:,.1f} MB",
        f"{progress.hosts_active} hosts at work",
        f"{progress.failed:,} failed",
    ]
    if left is not None:
        parts.append(f"{_duration(left)} to go")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
