"""`python -m backfill_dagster.estimate configs/<name>.yaml`: what a study will take. Asks no server."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from backfill_dagster.config.loading import load_study
from backfill_dagster.errors import BackfillError
from backfill_dagster.estimate.figures import Figures, Prices
from backfill_dagster.estimate.frames import KnownFrame, frame_of
from backfill_dagster.estimate.model import Estimate, estimate

_ASSUMED = ("records_per_account", "bytes_per_record", "request_seconds", "line_bytes_per_second")


def main(arguments: list[str] | None = None) -> int:
    """Print the estimate; returns what the process is to exit with."""
    parser = argparse.ArgumentParser(prog="python -m backfill_dagster.estimate", description=__doc__)
    parser.add_argument("yaml", type=Path, help="the study's YAML")
    parser.add_argument("--accounts", type=int, help="of how many accounts; as the source has, if left out")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    defaults: dict[str, float] = {each.name: each.default for each in (*fields(Figures), *fields(Prices))}  # type: ignore[misc]
    prices = [each.name for each in fields(Prices)]
    for name in (*_ASSUMED, *prices):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            default=defaults[name],
            help=f"default {defaults[name]:g}",
        )
    given = parser.parse_args(arguments)
    if given.accounts is not None and given.accounts < 1:
        parser.error("--accounts must be at least 1")
    figures = replace(Figures(), **{name: getattr(given, name) for name in _ASSUMED})
    try:
        study = load_study(given.yaml)
        known = frame_of(study, figures, given.accounts)
    except BackfillError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    told = estimate(
        known.frame,
        study.processing,
        study.network,
        figures,
        Prices(*(getattr(given, name) for name in prices)),
    )
    print(json.dumps(asdict(told), indent=2) if given.json else _in_words(study.name, known, told))  # noqa: T201
    return 0


def _in_words(name: str, known: KnownFrame, told: Estimate) -> str:
    rows = [
        ("accounts", f"{told.accounts:,}", known.accounts_from),
        ("hosts", f"{told.hosts:,}", known.hosts_from),
        ("records", f"{told.records:,.0f}", f"sizes {known.sizes_from}"),
        ("requests to the PLC directory", f"{told.directory_requests:,.0f}", _time(told.directory_seconds)),
        ("requests to the hosts", f"{told.fetch_requests:,.0f}", _time(told.fetch_seconds)),
        ("  of these the slowest host", "", _time(told.slowest_host_seconds)),
        ("received", _bytes(told.bytes_received), ""),
        ("records and tables", "", _time(told.tables_seconds)),
        ("in all", "", _time(told.seconds)),
        ("processor", "", f"{_time(told.cpu_seconds)} of one core"),
        ("memory", _bytes(told.peak_memory), "at most, with its workers"),
        ("stored", _bytes(told.bytes_stored), "packs, records and tables"),
        ("machine at AWS", f"${told.machine_dollars:,.2f}", "while it runs"),
        ("S3 at AWS", f"${told.storage_dollars_a_month:,.2f}", "a month"),
        ("requests to S3", f"${told.storage_request_dollars:,.2f}", "once"),
    ]
    lines = [f"{what:<32}{number:>16}  {remark}".rstrip() for what, number, remark in rows]
    return "\n".join([f"Study {name}, if nothing fails:", *lines])


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


if __name__ == "__main__":
    sys.exit(main())
