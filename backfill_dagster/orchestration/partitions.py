"""The two partition spaces of a study: its PDS hosts and its time windows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster.records.windows import granularity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backfill_dagster.config.study import Study
    from backfill_dagster.config.time_range import TimeRange

_DEFINITIONS: dict[str, Callable[..., dg.TimeWindowPartitionsDefinition]] = {
    "monthly": dg.MonthlyPartitionsDefinition,
    # ISO weeks begin on Monday; Dagster counts from Sunday.
    "weekly": partial(dg.WeeklyPartitionsDefinition, day_offset=1),
    "daily": dg.DailyPartitionsDefinition,
}


def pds_partitions_name(study: Study) -> str:
    """Return the name of the study's dynamic set of hosts."""
    return f"{study.name}__pds"


def pds_partitions(study: Study) -> dg.DynamicPartitionsDefinition:
    """One partition per PDS host (and port), registered when the directory is resolved, never deleted."""
    return dg.DynamicPartitionsDefinition(name=pds_partitions_name(study))


def time_partitions(time_range: TimeRange) -> dg.TimeWindowPartitionsDefinition:
    """One partition per month, week or day that can hold rows, its key the value in the name of its folder.

    The bounds are whole windows: Dagster leaves out a window that they hold only part of. An open period takes in
    the window that is running.
    """
    granularity = granularity_of(time_range)
    define = partial(
        _DEFINITIONS[time_range.partitions],
        start_date=granularity.key(granularity.floor(time_range.earliest)),
        fmt=granularity.key_format,
    )
    if time_range.latest is None:
        return define(end_offset=1)
    return define(end_date=granularity.key(granularity.after(time_range.latest)))


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
