"""How long the real frame would take at the pace of real hosts, by what the rungs have used of the processor.

Each stage's CPU is taken to be so much for each account and so much for each record, of the parent and of its workers
apart: rungs of the same accounts with other sizes tell them apart. The parent is one process, so that its part is as
long on any machine, and what its workers do is shared out among them. What goes on at once takes as long as the longest
of it, what comes one after the other takes its sum:

    directory = max(accounts / its rate, parent)
    fetch     = max(the hosts at their pace, the machine's line, parent, workers / their number)
    the rest  = parent + workers / their number

The hosts' pace and the lines are those of `backfill_dagster.estimate`. That has figures of its own for the processor,
measured on repositories of real sizes: what it says of the same frame stands beside, and must come to about the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.config.network import Network
from backfill_dagster.config.processing import Processing
from backfill_dagster.estimate.figures import Figures, Prices
from backfill_dagster.estimate.model import Estimate, Frame, estimate
from backfill_dagster_tests.benchmarks.scale.frame import FRAME_ACCOUNTS, frame_of
from backfill_dagster_tests.benchmarks.scale.trees import real_sizes

if TYPE_CHECKING:
    from backfill_dagster_tests.benchmarks.scale.rung import Rung, Stage

REQUESTS_PER_SECOND = 10.0
_DIRECTORY, _FETCH = "directory", "repos"


@dataclass(frozen=True, slots=True)
class Linear:
    """CPU seconds: fixed, for each account, and for each record."""

    fixed: float
    account: float
    record: float

    def of(self, accounts: float, records: float) -> float:
        """Return what so many take."""
        return self.fixed + accounts * self.account + records * self.record


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage takes of the parent and of its workers."""

    parent: Linear
    workers: Linear


@dataclass(frozen=True, slots=True)
class WallTime:
    """Seconds of the real frame with so many workers; and what `backfill_dagster.estimate` says of the same."""

    workers: int
    directory: float
    fetch: float
    fetch_parent: float
    fetch_workers: float
    rest: float
    estimated: Estimate

    @property
    def total(self) -> float:
        """From the first request to the last file."""
        return self.directory + self.fetch + self.rest


def stage_costs(small: Rung, large: Rung, heavy: Rung) -> dict[str, StageCost]:
    """Tell what the stages cost, by two rungs of other accounts and one of the small one's with more records."""
    names = [name for name in large.first.stages if name in small.first.stages and name in heavy.first.stages]
    return {
        name: StageCost(
            *(
                _line(
                    small,
                    large,
                    heavy,
                    *(_part(rung.first.stages[name], part) for rung in (small, large, heavy)),
                )
                for part in ("parent_cpu", "workers_cpu")
            )
        )
        for name in names
    }


def _part(stage: Stage, part: str) -> float:
    cpu: float = getattr(stage, part)
    return cpu


def _line(small: Rung, large: Rung, heavy: Rung, *cpu: float) -> Linear:
    of_small, of_large, of_heavy = cpu
    record = max(0.0, (of_heavy - of_small) / (heavy.records - small.records))
    more = large.settings.accounts - small.settings.accounts
    account = max(0.0, (of_large - of_small - record * (large.records - small.records)) / more)
    return Linear(
        max(0.0, of_small - account * small.settings.accounts - record * small.records), account, record
    )


def wall_time(costs: dict[str, StageCost], workers: int) -> WallTime:
    """Say how long the real frame takes with so many workers."""
    sizes = real_sizes()
    accounts, per_account = FRAME_ACCOUNTS, sum(sizes) / len(sizes)
    figures = Figures(records_per_account=per_account)
    frame = Frame(frame_of(accounts).hosts, per_account, per_account * figures.bytes_per_record)
    processing = Processing(requests_per_second=REQUESTS_PER_SECOND, workers=workers)
    estimated = estimate(frame, processing, Network(), figures, Prices())
    parents = {name: cost.parent.of(accounts, frame.accounts * per_account) for name, cost in costs.items()}
    others = {name: cost.workers.of(accounts, frame.accounts * per_account) for name, cost in costs.items()}
    rest = [name for name in costs if name not in (_DIRECTORY, _FETCH)]
    return WallTime(
        workers,
        directory=max(estimated.directory_seconds, parents[_DIRECTORY]),
        fetch=max(
            estimated.hosts_seconds,
            estimated.bytes_received / figures.line_bytes_per_second,
            parents[_FETCH],
            others[_FETCH] / workers,
        ),
        fetch_parent=parents[_FETCH],
        fetch_workers=others[_FETCH],
        rest=sum(parents[name] + others[name] / workers for name in rest),
        estimated=estimated,
    )
