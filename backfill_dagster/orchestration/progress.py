"""How far a stage is: an observation of its asset at a human pace, and a bar on the terminal, if there is one.

Observations are what Dagster keeps as numbers: a program reads them from the event log by name, and the UI plots them.
A log line's extra fields it would drop. None of them names an account.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import dagster as dg

from backfill_dagster.orchestration.terminal import attached_terminal
from backfill_dagster.orchestration.watched_run import watched_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backfill_dagster.directory.resolve import DirectoryProgress
    from backfill_dagster.orchestration.terminal import Bar
    from backfill_dagster.pipeline import ConversionProgress
    from backfill_dagster.repos.crawl import Progress

_Progress = TypeVar("_Progress")

# Seconds: between two looks at the state; over which a rate is taken; and between two events, at first and at most.
LOOK_SECONDS = 0.2
RATE_SECONDS = 60.0
FIRST_PAUSE = 10.0
LONGEST_PAUSE = 60.0
# Between the two, a pause is this share of the time that the stage has taken so far.
_PAUSE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a stage stands: `done` of `total` units, what else is to be said of it, and the same as metadata."""

    unit: str
    done: int
    total: int
    said: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    megabytes: float | None = None


class MovingRate:
    """What is done per second of late, not on average since the beginning."""

    def __init__(self, seconds: float = RATE_SECONDS) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, float]] = deque()

    def note(self, now: float, amount: float) -> float:
        """Take note of the amount done by now, and return the rate."""
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - self._seconds:
            samples.popleft()
        if not samples or now >= samples[-1][0] + 1:
            samples.append((now, amount))
        then, before = samples[0]
        return (amount - before) / (now - then) if now > then else 0.0


class ProgressReporter(Generic[_Progress]):
    """Is called with a stage's progress as often as one likes; tells of it by events and by a bar."""

    def __init__(
        self,
        view: Callable[[_Progress], Standing],
        log: Callable[[str, dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bar: Bar | None = None
        self._view = view
        self._log = log
        self._clock = clock
        self._started = clock()
        self._next_look = self._started
        self._next_event = self._started + FIRST_PAUSE
        self._done_rate, self._megabyte_rate = MovingRate(), MovingRate()
        self._latest: _Progress | None = None
        self._done_before = 0

    def __call__(self, progress: _Progress) -> None:
        """Take note of the progress, and tell of it if it is time."""
        if self._latest is None:
            self._done_before = self._view(progress).done
        self._latest = progress
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        standing = self._view(progress)
        rate = self._done_rate.note(now, standing.done)
        megabyte_rate = self._megabyte_rate.note(now, standing.megabytes or 0)
        left = (standing.total - standing.done) / rate if rate else None
        line = _line(standing, rate, None if left is None else f"{duration(left)} to go")
        if self.bar is not None:
            self.bar.draw(standing.done, standing.total, line)
        if now >= self._next_event:
            passed = now - self._started
            self._next_event = now + min(max(_PAUSE_SHARE * passed, FIRST_PAUSE), LONGEST_PAUSE)
            self._log(line, _metadata(standing, rate, megabyte_rate, passed, left))

    def standing(self) -> Standing | None:
        """Return where the stage stands; None if it has not said. Another thread may ask."""
        return None if self._latest is None else self._view(self._latest)

    def finish(self) -> None:
        """Tell of the stage as a whole, if there was anything to do in it."""
        if self._latest is None:
            return
        standing = self._view(self._latest)
        passed = max(self._clock() - self._started, 1e-3)
        rate = (standing.done - self._done_before) / passed
        megabyte_rate = (standing.megabytes or 0) / passed
        line = _line(standing, rate, f"in {duration(passed)}")
        left = 0.0 if standing.done == standing.total else None
        self._log(line, _metadata(standing, rate, megabyte_rate, passed, left))


@contextmanager
def reported_progress(
    context: dg.AssetExecutionContext, title: str, view: Callable[[_Progress], Standing]
) -> Iterator[ProgressReporter[_Progress]]:
    """Give what a stage is to be called with: it tells of the progress until the block ends, and once then."""

    def log(line: str, metadata: dict[str, Any]) -> None:
        # A run's page shows no descriptions of observations, but the first of their metadata.
        metadata = {"progress": line, **metadata}
        context.log_event(
            dg.AssetObservation(asset_key=context.asset_key, description=line, metadata=metadata)
        )

    terminal = attached_terminal()
    shown = terminal.show_bar(title) if terminal and terminal.has_log else nullcontext()
    reporter = ProgressReporter(view, log)
    if (watched := watched_run(context.run)) is not None:
        watched.follow(reporter.standing)
    try:
        with shown as reporter.bar:
            yield reporter
    finally:
        reporter.finish()


def fetch_standing(progress: Progress) -> Standing:
    """Say how far a fetch is, in accounts, bytes and hosts."""
    failures = {str(reason): number for reason, number in sorted(progress.failures.items())}
    failed = sum(failures.values())
    megabytes = progress.bytes_received / 1e6
    unfinished = progress.hosts_done < progress.hosts
    reasons = (
        f" ({', '.join(f'{reason} {number:,}' for reason, number in failures.items())})" if failures else ""
    )
    return Standing(
        unit="accounts",
        done=progress.done,
        total=progress.total,
        said=(
            f"{megabytes:,.1f} MB",
            f"{progress.hosts_done:,} of {progress.hosts:,} hosts done",
            *([f"{progress.hosts_active:,} at work", f"{progress.hosts_parked:,} waiting"] * unfinished),
            f"{failed:,} failed{reasons}",
        ),
        metadata={
            "hosts": progress.hosts,
            "hosts_done": progress.hosts_done,
            "hosts_active": progress.hosts_active,
            "hosts_parked": progress.hosts_parked,
            "failed": failed,
            "failures_by_reason": failures,
        },
        megabytes=megabytes,
    )


def directory_standing(progress: DirectoryProgress) -> Standing:
    """Say how far the looking up of DIDs is; what was known before counts as done."""
    states = {str(state): number for state, number in sorted(progress.states.items())}
    return Standing(
        unit="DIDs",
        done=progress.done,
        total=progress.total,
        said=tuple(f"{number:,} {state}" for state, number in states.items()),
        metadata={"looked_up": sum(states.values()), "looked_up_by_state": states},
    )


def conversion_standing(progress: ConversionProgress) -> Standing:
    """Say how far the making of records is, in packs."""
    return Standing(
        unit="packs",
        done=progress.done,
        total=progress.total,
        said=(f"{progress.records:,} records",),
        metadata={"records_read": progress.records},
    )


def duration(seconds: float) -> str:
    """Return a span of time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _line(standing: Standing, rate: float, when: str | None) -> str:
    parts = [
        f"{standing.done:,} of {standing.total:,} {standing.unit}",
        when,
        f"{rate:.1f}/s",
        *standing.said,
    ]
    return ", ".join(part for part in parts if part)


def _metadata(
    standing: Standing, rate: float, megabyte_rate: float, passed: float, left: float | None
) -> dict[str, Any]:
    unit = standing.unit.lower()
    numbers = {
        f"{unit}_done": standing.done,
        f"{unit}_total": standing.total,
        f"{unit}_per_second": round(rate, 3),
        "seconds_passed": round(passed, 1),
        "seconds_to_go": None if left is None else round(left, 1),
        **standing.metadata,
    }
    if standing.megabytes is not None:
        numbers["megabytes"] = round(standing.megabytes, 3)
        numbers["megabytes_per_second"] = round(megabyte_rate, 3)
    # Apart from what materializations of the same asset say, which is of one host and not of a whole run.
    return {f"progress/{name}": value for name, value in numbers.items()}
