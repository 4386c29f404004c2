"""From a downloaded repository to the tables in one process, against every other way to its records.

Each comparison runs in a process of its own, with one thread for Polars, which is what a worker has. The pipeline's
subjects have the collector off, as a worker has it as well.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

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
    with_collector,
    without_collector,
)
from backfill_dagster_tests.benchmarks.references import atcute, bare_loop, decode_car, naive, sdk
from backfill_dagster_tests.benchmarks.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo
    from backfill_dagster_tests.benchmarks.measure import Options

SIZES = (50_000, 200_000)
# Rounds of the larger repository, which takes four times as long and shows the same ratios.
_FEW_ROUNDS = 3

WHOLE = "whole: CAR to tables"
WITHOUT_JSON = "whole, without the JSON column"
OVER_MONTHS = "whole, dates over 30 months, one file for each"
FRAMES = "verified decode to frames, nothing written"
DECODE = "libipld.decode_car"
BARE = "bare loop"
SDK_ON, SDK_OFF = "SDK models, collector on", "SDK models, collector off"
NAIVE_ON, NAIVE_OFF = "naive rows, collector on", "naive rows, collector off"
BLOCKS_ON, BLOCKS_OFF = "naive blocks without keys, collector on", "naive blocks without keys, collector off"
ATCUTE = "@atcute/repo in Node"

_NOTES = (
    "CPU of one process, signature and all other proofs included; the ratio is to the whole path. The naive rows have "
    "keys, URI, CID, time and JSON, as tables must; the naive blocks and the SDK's models have none of these. "
    "The bare loop keeps nothing that it decodes.",
)


def run(options: Options) -> list[Report]:
    """Compare on the generated repositories of both sizes."""
    notes, entry = _atcute(options)
    reports = []
    for records in SIZES:
        repo = large_repo(options.folder, records)
        if records == SIZES[0]:
            months = large_repo(options.folder, records, in_window=False)
            measured = run_fresh(compare, options.folder, repo, months, options.rounds, entry).result
        else:
            rounds = min(options.rounds, _FEW_ROUNDS)
            measured = run_fresh(compare, options.folder, repo, None, rounds, None).result
        by_name = {one.name: one for one in measured}
        rows = timing_rows(measured, records, by_name[WHOLE])
        title = f"One process, {records:,} records"
        reports.append(Report(title, TIMING_COLUMNS, rows, goals(by_name, f"{records:,} records"), notes))
    return reports


def compare(
    folder: Path,
    repo: SignedRepo,
    months: SignedRepo | None,
    rounds: int,
    entry: Path | None,
    *,
    warm_up: bool = True,
) -> list[Measured]:
    """Time all subjects on one repository; the stages one by one as well if there is one over months.

    With the module of atcute's reader, that too.
    """
    cars, output = (repo.car,), folder / "naive"
    output.mkdir(exist_ok=True)
    stages = Stages.of(folder / "whole", [repo])
    bare = Stages.of(folder / "without-json", [repo], processing={"record_json": False})
    subjects = [
        _worker(WHOLE, stages.all),
        _worker(WITHOUT_JSON, bare.all),
        _worker(FRAMES, stages.frames),
        _worker(DECODE, partial(decode_car.decode, cars)),
        _worker(BARE, partial(bare_loop.read_records, cars)),
        *_both((SDK_ON, SDK_OFF), partial(sdk.read_models, cars)),
        *_both((NAIVE_ON, NAIVE_OFF), partial(naive.write_rows, cars, output)),
        *_both((BLOCKS_ON, BLOCKS_OFF), partial(naive.write_blocks, cars, output)),
    ]
    if months is not None:
        alone, over = Stages.of(folder / "alone", [repo]), _over_months(folder, months)
        alone.all()
        subjects += [
            _worker(OVER_MONTHS, over.all),
            _worker("stage: verify", alone.verify),
            _worker("stage: verify and pack", alone.pack),
            _worker("stage: records", alone.records),
            _worker("stage: tables", alone.tables),
            _worker("stage: accounts (reads the tables again)", alone.accounts),
        ]
    with ExitStack() as stack:
        if entry is not None:
            read = stack.enter_context(atcute.reader(entry))
            subjects.append(Subject(ATCUTE, partial(read, cars)))
        return interleave(subjects, rounds, warm_up=warm_up)


def goals(by_name: dict[str, Measured], where: str) -> list[Goal]:
    """Hold the whole path against the references."""
    whole = by_name[WHOLE]
    found = [
        Goal(f"times as fast as the SDK, {where}", 3.5, True, ratio(by_name[SDK_ON], whole)),
        Goal(f"times as fast as the naive way, {where}", 3.0, True, ratio(by_name[NAIVE_ON], whole)),
        Goal(f"times of libipld.decode_car, {where}", 6.0, False, ratio(whole, by_name[DECODE])),
        Goal(f"bare loop's share of the whole, {where}", 0.40, True, ratio(by_name[BARE], whole)),
    ]
    if ATCUTE in by_name:
        share = ratio(by_name[FRAMES], by_name[ATCUTE])
        found.append(Goal(f"times of atcute, to frames, {where}", 1.0, False, share))
    return found


def _over_months(folder: Path, months: SignedRepo) -> Stages:
    return Stages.of(folder / "months", [months], time_range={"outside": "normalize"})


def _worker(name: str, run: Callable[[], object]) -> Subject:
    return Subject(name, without_collector(run))


def _both(names: tuple[str, str], run: partial[None]) -> list[Subject]:
    return [Subject(names[0], with_collector(run)), Subject(names[1], without_collector(run))]


def _atcute(options: Options) -> tuple[tuple[str, ...], Path | None]:
    if not options.atcute:
        return (*_NOTES, "atcute was not run: ask for it with --atcute."), None
    try:
        return _NOTES, atcute.install()
    except atcute.NoNodeError as error:
        return (*_NOTES, f"atcute was not run: {error}."), None
