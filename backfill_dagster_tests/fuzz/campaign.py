"""A bounded run of the fuzz: shards of cases, spread over worker processes, summed up in one report."""

from __future__ import annotations

import faulthandler
import multiprocessing
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

from backfill_dagster_tests.fuzz.cases import make_case
from backfill_dagster_tests.fuzz.judge import ACCEPTED, Verdict, judge_file, judge_tables

if TYPE_CHECKING:
    from collections.abc import Callable

SHARD_CASES = 500
# Accepted files per call that makes tables: alone, some, and many.
BATCHES = (1, 10, 50)
# A shard takes a few seconds. One that takes so many hangs: its worker says where, and ends.
HANG_SECONDS = 300
# What a worker may hold at its peak; the libraries alone take a third of it.
MAX_RSS_MB = 1024


@dataclass(frozen=True, order=True)
class Timed:
    """How long something took."""

    seconds: float = 0.0
    what: str = ""


@dataclass
class Tally:
    """What happened so far. `outcomes` counts files by (family, kind, outcome), `findings` are what must not be."""

    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    slowest_file: Timed = Timed()
    slowest_tables: Timed = Timed()
    records: int = 0
    peak_rss_mb: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def mutations(self) -> int:
        return self.outcomes.total()

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.slowest_file = max(self.slowest_file, other.slowest_file)
        self.slowest_tables = max(self.slowest_tables, other.slowest_tables)
        self.records += other.records
        self.peak_rss_mb = max(self.peak_rss_mb, other.peak_rss_mb)
        self.findings += other.findings


def run_shard(seed: int, first: int, count: int) -> Tally:
    """Judge the cases `first` to `first + count - 1`."""
    tally = Tally()
    accepted: list[Verdict] = []
    sizes = cycle(BATCHES)
    size = next(sizes)
    for number in range(first, first + count):
        verdict = judge_file(make_case(seed, number))
        case = verdict.case
        tally.outcomes[case.family, case.kind, verdict.outcome] += 1
        tally.slowest_file = max(tally.slowest_file, Timed(verdict.seconds, str(case)))
        tally.findings += verdict.findings
        if verdict.outcome == ACCEPTED and verdict.repo is not None:
            accepted.append(verdict)
        if len(accepted) == size or (accepted and number == first + count - 1):
            tables = judge_tables(accepted)
            what = f"{len(accepted)} files, the last of them {accepted[-1].case}"
            tally.slowest_tables = max(tally.slowest_tables, Timed(tables.seconds, what))
            tally.records += tables.records
            tally.findings += tables.findings
            accepted, size = [], next(sizes)
    tally.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return tally


def _run_watched_shard(seed: int, first: int, count: int) -> Tally:
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    try:
        return run_shard(seed, first, count)
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_campaign(seed: int, mutations: int, workers: int, progress: Callable[[str], None]) -> Tally:
    """Judge the cases 0 to `mutations - 1`; the sums do not depend on the number of workers."""
    total = Tally()
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        shards = {
            pool.submit(_run_watched_shard, seed, first, min(SHARD_CASES, mutations - first)): first
            for first in range(0, mutations, SHARD_CASES)
        }
        for shard in as_completed(shards):
            first = shards[shard]
            try:
                total.add(shard.result())
            except BrokenProcessPool:
                total.findings.append(f"a worker died, perhaps in the cases from {first} on")
            progress(
                f"{total.mutations:,} of {mutations:,} in {time.monotonic() - started:.0f} s, "
                f"{len(total.findings)} findings"
            )
    if total.peak_rss_mb > MAX_RSS_MB:
        total.findings.append(f"a worker held {total.peak_rss_mb} MB, more than {MAX_RSS_MB}")
    return total


def report(tally: Tally) -> str:
    """Lay a tally out for people."""
    families: Counter[str] = Counter()
    outcomes: Counter[tuple[str, str]] = Counter()
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for (family, kind, outcome), count in tally.outcomes.items():
        families[family] += count
        outcomes[family, outcome] += count
        kinds.setdefault((family, kind), Counter())[outcome] += count
    lines = [f"{tally.mutations:,} mutations, {tally.records:,} records of accepted files laid out"]
    for family, count in sorted(families.items()):
        lines.append(f"\n{family}: {count:,}")
        ends = {outcome: number for (of, outcome), number in outcomes.items() if of == family}
        lines += [
            f"  {outcome:<18}{number:>8,}" for outcome, number in sorted(ends.items(), key=lambda e: -e[1])
        ]
    lines.append("\nby kind:")
    for (family, kind), ends in sorted(kinds.items()):
        refused = ", ".join(f"{name} {number:,}" for name, number in ends.most_common() if name != ACCEPTED)
        lines.append(
            f"  {family:<8}{kind:<22}{ends.total():>7,}  accepted {ends[ACCEPTED]:>6,}  refused: {refused or '-'}"
        )
    lines += [
        f"\nslowest verification: {tally.slowest_file.seconds * 1000:.0f} ms, {tally.slowest_file.what}",
        f"slowest tables: {tally.slowest_tables.seconds * 1000:.0f} ms, {tally.slowest_tables.what}",
        f"peak memory of a worker: {tally.peak_rss_mb} MB",
        f"findings: {len(tally.findings)}",
        *(f"  {finding}" for finding in tally.findings[:100]),
    ]
    return "\n".join(lines)
