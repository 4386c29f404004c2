"""What rungs came to, as tables and goals."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from backfill_dagster_tests.benchmarks.measure import Goal, Report
from backfill_dagster_tests.benchmarks.scale.wall_time import REQUESTS_PER_SECOND, stage_costs, wall_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster_tests.benchmarks.measure import Cell
    from backfill_dagster_tests.benchmarks.scale.rung import JobRun, Rung

_MB = 1e6
MOST_GROWTH = 1.2
_WORKERS = (1, 4, 16)


def ladder_reports(ladder: Sequence[Rung]) -> list[Report]:
    """Tell of rungs of the same hosts and sizes, fewest accounts first."""
    reports = [_rungs(ladder), _again(ladder), _stages(ladder), _memory(ladder)]
    return [*reports, _history(ladder)]


def _rungs(ladder: Sequence[Rung]) -> Report:
    columns = (
        *("accounts", "hosts", "records", "packs", "files", "stored MB"),
        *("CPU s", "ms per account", "without Dagster", "parent MB", "worker MB", "wall s", "load before"),
    )
    rows: list[list[Cell]] = [
        [
            rung.settings.accounts,
            rung.settings.hosts,
            rung.records,
            rung.packs,
            rung.files,
            rung.stored_bytes / _MB,
            rung.first.cpu,
            1000 * rung.cpu_per_account,
            rung.without,
            rung.first.parent_peak / _MB,
            rung.first.worker_peak / _MB,
            rung.first.wall,
            rung.load,
        ]
        for rung in ladder
    ]
    return Report("The whole job", columns, rows, _growth_goals(ladder))


def _growth_goals(ladder: Sequence[Rung]) -> list[Goal]:
    if len(ladder) < 2:
        return []
    first, last = ladder[0], ladder[-1]
    of = f"{last.settings.accounts:,} accounts to {first.settings.accounts:,}"
    goals = [Goal(f"CPU per account, {of}", MOST_GROWTH, False, last.cpu_per_account / first.cpu_per_account)]
    more = [
        (after.first.cpu - before.first.cpu) / (after.settings.accounts - before.settings.accounts)
        for before, after in pairwise(ladder)
    ]
    if len(more) > 1:
        goals.append(Goal(f"CPU of one account more, {of}", MOST_GROWTH, False, more[-1] / more[0]))
    return [
        *goals,
        Goal(f"parent's memory, {of}", MOST_GROWTH, False, last.first.parent_peak / first.first.parent_peak),
        Goal(f"worker's memory, {of}", MOST_GROWTH, False, last.first.worker_peak / first.first.worker_peak),
    ]


def _again(ladder: Sequence[Rung]) -> Report:
    rows: list[list[Cell]] = [
        [
            rung.settings.accounts,
            rung.again.cpu,
            1000 * rung.again.cpu / rung.settings.accounts,
            rung.again.parent_peak / _MB,
            rung.again.events,
            rung.again.requests,
        ]
        for rung in ladder
    ]
    columns = ("accounts", "CPU s", "ms per account", "parent MB", "events", "requests")
    return Report("The job again, with nothing left to do", columns, rows)


def _stages(ladder: Sequence[Rung]) -> Report:
    """Tell each stage's CPU, and of one account more from each rung to the next."""
    columns = [f"CPU s, {rung.settings.accounts:,}" for rung in ladder]
    steps = list(pairwise(ladder))
    columns += [f"ms per account more, to {after.settings.accounts:,}" for _, after in steps]
    rows: list[list[Cell]] = []
    for name in ladder[-1].first.stages:
        cpu = [_cpu(rung.first, name) for rung in ladder]
        more = [
            1000
            * (_cpu(after.first, name) - _cpu(before.first, name))
            / (after.settings.accounts - before.settings.accounts)
            for before, after in steps
        ]
        grows = more[-1] / more[0] if len(more) > 1 and more[0] > 0 else None
        rows.append([name, *cpu, *more, *([grows] if len(more) > 1 else [])])
    ratio = ["ratio"] if len(steps) > 1 else []
    return Report("The stages' CPU, with their workers", ["stage", *columns, *ratio], rows)


def _cpu(run: JobRun, stage: str) -> float:
    return run.stages[stage].cpu if stage in run.stages else 0.0


def _memory(ladder: Sequence[Rung]) -> Report:
    columns = [f"{who}, {rung.settings.accounts:,}" for rung in ladder for who in ("parent", "worker")]
    rows: list[list[Cell]] = []
    for name in ladder[-1].first.stages:
        held: list[Cell] = []
        for rung in ladder:
            stage = rung.first.stages.get(name)
            held += [stage.parent_bytes / _MB, stage.worker_bytes / _MB] if stage else [None, None]
        rows.append([name, *held])
    return Report(
        "Memory of their own that processes hold in each stage, MB",
        ["stage", *columns],
        rows,
        notes=("Looked at five times a second, without mapped files; the peaks above are the kernel's.",),
    )


def _history(ladder: Sequence[Rung]) -> Report:
    columns = ("accounts", "hosts", "runs", "events", "events per host", "history MB", "kB per host")
    rows: list[list[Cell]] = [
        [
            rung.settings.accounts,
            rung.settings.hosts,
            rung.first.runs,
            rung.first.events,
            rung.first.events / rung.settings.hosts,
            rung.first.history_bytes / _MB,
            rung.first.history_bytes / 1000 / rung.settings.hosts,
        ]
        for rung in ladder
    ]
    return Report("Dagster's history", columns, rows)


def hosts_report(few: Rung, many: Rung) -> Report:
    """Tell what a host costs, by two rungs of the same accounts on few hosts and on many."""
    more = many.settings.hosts - few.settings.hosts

    def per_host(of_many: float, of_few: float) -> float:
        return (of_many - of_few) / more

    without = None
    if few.without is not None and many.without is not None:
        without = 1000 * per_host(many.without, few.without)
    in_all = 1000 * per_host(many.first.cpu, few.first.cpu)
    rows: list[list[Cell]] = [
        ["CPU ms", in_all],
        ["of it without Dagster", without],
        ["of it Dagster's", None if without is None else in_all - without],
        ["events", per_host(many.first.events, few.first.events)],
        ["kB in the instance's database", per_host(many.first.history_bytes, few.first.history_bytes) / 1000],
        ["parent's memory, kB", per_host(many.first.parent_peak, few.first.parent_peak) / 1000],
    ]
    hosts = f"{few.settings.hosts:,} to {many.settings.hosts:,}"
    title = f"One host more: {hosts}, of {few.settings.accounts:,} accounts"
    return Report(title, ("for each", "how much"), rows)


def share_report(rungs: Sequence[Rung]) -> Report:
    """Tell what Dagster takes of each rung that was run without it as well."""
    rows: list[list[Cell]] = [
        [
            rung.settings.accounts,
            rung.settings.hosts,
            rung.first.cpu,
            rung.without,
            rung.first.cpu - rung.without,
            1000 * (rung.first.cpu - rung.without) / rung.settings.hosts,
            1e6 * (rung.first.cpu - rung.without) / rung.settings.accounts,
        ]
        for rung in rungs
        if rung.without is not None
    ]
    columns = (
        *("accounts", "hosts", "CPU s", "by the stage functions alone", "Dagster's CPU s"),
        *("ms per host", "µs per account"),
    )
    return Report("What Dagster adds, with its start-up", columns, rows)


def wall_time_report(small: Rung, large: Rung, heavy: Rung) -> list[Report]:
    """Tell how long the real frame would take at the pace of real hosts."""
    costs = stage_costs(small, large, heavy)
    cost_rows: list[list[Cell]] = [
        [
            name,
            1e6 * cost.parent.account,
            1e6 * cost.workers.account,
            1e6 * cost.parent.record,
            1e6 * cost.workers.record,
        ]
        for name, cost in costs.items()
    ]
    times = [wall_time(costs, workers) for workers in _WORKERS]
    rows: list[list[Cell]] = [
        [
            time.workers,
            time.directory / 3600,
            time.fetch / 3600,
            time.fetch_parent / 3600,
            time.fetch_workers / time.workers / 3600,
            time.rest / 3600,
            time.total / 3600,
            time.estimated.directory_seconds / 3600,
            time.estimated.fetch_seconds / 3600,
            time.estimated.tables_seconds / 3600,
            time.estimated.seconds / 3600,
        ]
        for time in times
    ]
    columns = (
        *("workers", "directory h", "fetch h", "its parent h", "its workers h", "the rest h", "in all h"),
        *("estimate: directory h", "fetch h", "records and tables h", "in all h"),
    )
    title = f"The real frame at {REQUESTS_PER_SECOND:g} requests a second for each host"
    return [
        Report(
            "CPU of the stages, µs",
            (
                "stage",
                "parent, an account",
                "workers, an account",
                "parent, a record",
                "workers, a record",
            ),
            cost_rows,
        ),
        Report(title, columns, rows),
    ]
