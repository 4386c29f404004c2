"""What records and tables cost when little is asked for: one record type, or one month of the study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backfill_dagster_tests.benchmarks.generated_repos import large_repo
from backfill_dagster_tests.benchmarks.measure import (
    TIMING_COLUMNS,
    Goal,
    Measured,
    Report,
    Subject,
    interleave,
    ratio,
    run_fresh,
    timing_rows,
    without_collector,
)
from backfill_dagster_tests.benchmarks.stages import Stages

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo
    from backfill_dagster_tests.benchmarks.measure import Options

RECORDS = 50_000

_ALL = "all six tables"
_STUDIES: dict[str, dict[str, Any]] = {
    _ALL: {},
    "posts and replies": {"record_types": ["app.bsky.feed.post"]},
    "blocks": {"record_types": ["app.bsky.graph.block"]},
    "one month, all six tables": {
        "time_range": {
            "start_date": "2024-10-01-00:00:00",
            "end_date": "2024-10-31-23:59:59",
            "outside": "drop",
        }
    },
}
_LIMITS = {"posts and replies": 0.45}


def run(options: Options) -> list[Report]:
    """Compare studies of one repository that differ in what they want."""
    repo = large_repo(options.folder, RECORDS)
    measured = run_fresh(compare, options.folder, repo, options.rounds).result
    whole = next(one for one in measured if one.name == _ALL)
    goals = [
        Goal(f"share of records and tables for {one.name}", _LIMITS[one.name], False, ratio(one, whole))
        for one in measured
        if one.name in _LIMITS
    ]
    title = f"Records and tables of what is asked for, of {RECORDS:,} records"
    return [Report(title, TIMING_COLUMNS, timing_rows(measured, RECORDS, whole), goals)]


def compare(folder: Path, repo: SignedRepo, rounds: int) -> list[Measured]:
    """Time the stages behind the packs, for each of the studies."""
    subjects = []
    for number, (name, parts) in enumerate(_STUDIES.items()):
        stages = Stages.of(folder / f"pruned-{number}", [repo], **parts)
        stages.pack()
        subjects.append(Subject(name, without_collector(stages.records_and_tables)))
    return interleave(subjects, rounds)
