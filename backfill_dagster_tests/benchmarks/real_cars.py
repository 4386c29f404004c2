"""From downloaded repositories to the tables in one process, on real CAR files, against the SDK.

Those beside the checkout, if there are any, and those named on the command line.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from backfill_dagster_tests.benchmarks.measure import (
    Cell,
    Goal,
    Measured,
    Report,
    Subject,
    interleave,
    ratio,
    run_fresh,
    with_collector,
    without_collector,
)
from backfill_dagster_tests.benchmarks.real_repos import UnusableCarError, repeated, shared_cars
from backfill_dagster_tests.benchmarks.references import bare_loop, decode_car, sdk
from backfill_dagster_tests.benchmarks.stages import Stages

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo
    from backfill_dagster_tests.benchmarks.measure import Options

_COLUMNS = ("file", "copies", "records", "whole, µs/record", "SDK / whole", "SDK without collector / whole")
_MORE_COLUMNS = ("whole / decode_car", "bare loop / whole")


def run(options: Options) -> list[Report]:
    """Compare on each file, repeated to 20,000 records."""
    rows: list[list[Cell]] = []
    notes = [
        "Each copy is another made-up account's, with a commit of its own; the records and the tree are real."
    ]
    shares: dict[str, float] = {}
    cars = [*shared_cars(), *options.cars]
    if not cars:
        notes.append("There are no real CAR files at ../shared/cars, and none were given.")
    for number, car in enumerate(cars):
        try:
            repos = repeated(options.folder / f"real-{number}", car)
        except UnusableCarError as error:
            notes.append(f"Passed over: {error}.")
            continue
        result = run_fresh(compare, options.folder, repos, options.rounds).result
        whole, usual, quiet, decoded, bare = result
        records = sum(repo.records for repo in repos)
        shares[car.name] = ratio(usual, whole)
        rows.append(
            [
                car.name,
                len(repos),
                records,
                1e6 * whole.median / records,
                shares[car.name],
                ratio(quiet, whole),
                ratio(whole, decoded),
                ratio(bare, whole),
            ]
        )
    goals = [Goal(f"times as fast as the SDK, {name}", 1.0, True, share) for name, share in shares.items()]
    return [Report("One process, real repositories", (*_COLUMNS, *_MORE_COLUMNS), rows, goals, notes)]


def compare(folder: Path, repos: list[SignedRepo], rounds: int) -> list[Measured]:
    """Time the whole path, the SDK with the collector and without, decoding alone, and the bare loop."""
    cars = [repo.car for repo in repos]
    models = partial(sdk.read_models, cars)
    return interleave(
        [
            Subject("whole", without_collector(Stages.of(folder / "real", repos).all)),
            Subject("SDK, collector on", with_collector(models)),
            Subject("SDK, collector off", without_collector(models)),
            Subject("libipld.decode_car", without_collector(partial(decode_car.decode, cars))),
            Subject("bare loop", without_collector(partial(bare_loop.read_records, cars))),
        ],
        rounds,
    )
