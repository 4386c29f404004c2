"""Reads a derived table's final files again: whether they are what the table's description promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.derived.build import Derivation, schema_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.derived.build import DerivedTable
    from backfill_dagster.derived.stored_tables import StoredTables


@dataclass(frozen=True, slots=True)
class DerivedInspection:
    """What was found in the files of some windows.

    Files of another schema, rows whose key stands twice in a window, and rows of the record tables that the window
    does not account for, or more than there are. `faulty` are the windows with any of these.
    """

    windows: int = 0
    files: int = 0
    other_schema: int = 0
    repeated_keys: int = 0
    unaccounted: int = 0
    faulty: tuple[str, ...] = ()


def inspect_derived(
    tables: StoredTables, derivation: Derivation, table: DerivedTable, windows: Iterable[str]
) -> DerivedInspection:
    """Read the files of these windows, one file's keys in memory at a time; lots part the keys, so files do."""
    storage, schema = tables.storage, schema_of(derivation)
    rule = derivation.covers
    inspected = files = other_schema = repeated = unaccounted = 0
    faulty = []
    for window in windows:
        inspected += 1
        faults = counted = 0
        for key in storage.keys(table.folder(window)):
            files += 1
            if storage.schema(key) != schema:
                other_schema += 1
                faults += 1
                continue
            rows = storage.scan([key], schema)
            twice = rows.select(pl.struct(derivation.key).is_duplicated().sum().alias("twice"))
            total = rows.select((rule[0] if rule else pl.len()).alias("total"))
            of_file, summed = (found.item() for found in storage.collect([twice, total], [key]))
            counted += summed
            repeated += of_file
            faults += of_file
        if rule is not None:
            off = abs(counted - tables.rows(rule[1], [window]))
            unaccounted += off
            faults += off
        if faults:
            faulty.append(window)
    return DerivedInspection(inspected, files, other_schema, repeated, unaccounted, tuple(faulty))
