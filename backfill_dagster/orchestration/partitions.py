"""The two partition spaces of a study: its PDS hosts and its months."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster.tables.months import MONTH_FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.config import Study, TimeRange


def pds_partitions_name(study: Study) -> str:
    """Return the name of the study's dynamic set of hosts."""
    return f"{study.name}__pds"


def pds_partitions(study: Study) -> dg.DynamicPartitionsDefinition:
    """One partition per PDS host (and port), registered when the directory is resolved, never deleted."""
    return dg.DynamicPartitionsDefinition(name=pds_partitions_name(study))


def month_partitions(time_range: TimeRange) -> dg.MonthlyPartitionsDefinition:
    """One partition per month that can hold rows, its key the name of the month's folder.

    The bounds are whole months: `MonthlyPartitionsDefinition` leaves out a month that it holds only part of.
    """
    start = time_range.first_month.strftime(MONTH_FORMAT)
    if time_range.month_after_last is None:
        return dg.MonthlyPartitionsDefinition(start_date=start, fmt=MONTH_FORMAT, end_offset=1)
    end = time_range.month_after_last.strftime(MONTH_FORMAT)
    return dg.MonthlyPartitionsDefinition(start_date=start, end_date=end, fmt=MONTH_FORMAT)


def register_hosts(instance: dg.DagsterInstance, study: Study, hosts: Iterable[str]) -> list[str]:
    """Add the hosts that are not partitions yet, in one call; return those added."""
    name = pds_partitions_name(study)
    known = set(instance.get_dynamic_partitions(name))
    new = sorted(set(hosts) - known)
    if new:
        instance.add_dynamic_partitions(name, new)
    return new


def covering_range(keys: list[str], wanted: Iterable[str]) -> tuple[str, str] | None:
    """Return the first and last of `keys` (in their order) that are wanted; None if none is."""
    chosen = set(wanted)
    inside = [key for key in keys if key in chosen]
    return (inside[0], inside[-1]) if inside else None
