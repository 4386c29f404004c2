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
from backfill_dagster_tests.benchmarks.real_repos import UnusableCarError, grown, repeated, shared_cars
from backfill_dagster_tests.benchmarks.references import bare_loop, decode_car, sdk
from backfill_dagster_tests.benchmarks.stages import Stages

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo
    from backfill_dagster_tests.benchmarks.measure import Options

_COLUMNS = (
    "file",
    "repositories",
    "records",
    "whole, µs/record",
    "SDK / whole",
    "SDK without collector / whole",
    "whole / decode_car",
    "bare loop / whole",
)
_NOTES = (
    "Grown: one repository of the file's records, each many times, every time with a key and a date of its own.",
    "Copied: the file's own tree and blocks as often as needed, each copy another made-up account's.",
)


def run(options: Options) -> list[Report]:
    """Compare on each file, repeated to 20,000 records, in one repository and in many."""
    rows: list[list[Cell]] = []
    notes, goals = list(_NOTES), []
    cars = [*shared_cars(), *options.cars]
    if not cars:
        notes.append("There are no real CAR files at ../shared/cars, and none were given.")
    for number, car in enumerate(cars):
        folder = options.folder / f"real-{number}"
        try:
            found = {"grown": [grown(folder, car)], "copied": repeated(folder, car)}
        except UnusableCarError as error:
            notes.append(f"Passed over: {error}.")
            continue
        for way, repos in found.items():
            name = f"{car.name}, {way}"
            measured = run_fresh(compare, options.folder, repos, options.rounds).result
            rows.append([name, *_row(repos, measured)])
            whole, usual = measured[:2]
            goals.append(Goal(f"times as fast as the SDK, {name}", 1.0, True, ratio(usual, whole)))
    return [Report("One process, real repositories", _COLUMNS, rows, goals, notes)]


def _row(repos: list[SignedRepo], measured: list[Measured]) -> list[Cell]:
    whole, usual, quiet, decoded, bare = measured
    records = sum(repo.records for repo in repos)
    return [
        len(repos),
        records,
        1e6 * whole.median / records,
        ratio(usual, whole),
        ratio(quiet, whole),
        ratio(whole, decoded),
        ratio(bare, whole),
    ]


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
