"""Reads a table's final files again: whether they are what the table's description promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.errors import StorageError
from backfill_dagster.records.tables import TABLE_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl

    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.storage import StudyStorage


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in the files of some windows: files of another schema, and rows that belong elsewhere.

    `faulty` are the windows that either was found in.
    """

    windows: int
    files: int
    other_schema: int
    rows_elsewhere: int
    faulty: tuple[str, ...]


def inspect_windows(
    storage: StudyStorage, table: str, granularity: Granularity, windows: Iterable[str]
) -> Inspection:
    """Read the dates and the schema of every file of these windows, one file in memory at a time."""
    schema = TABLE_BY_NAME[table].schema
    inspected = files = other_schema = rows_elsewhere = 0
    faulty = []
    for window in windows:
        inspected += 1
        faults = 0
        for key in storage.keys(f"tables/{table}/{granularity.folder(window)}"):
            files += 1
            if _schema_of(storage, key) != schema:
                other_schema += 1
                faults += 1
                continue
            belongs = granularity.start_of_row() == granularity.start(window)
            dates = storage.scan([key], schema).select("created_at", "date_quality")
            [elsewhere] = storage.collect([dates.select((~belongs.fill_null(value=False)).sum())], [key])
            rows_elsewhere += elsewhere.item()
            faults += elsewhere.item()
        if faults:
            faulty.append(window)
    return Inspection(inspected, files, other_schema, rows_elsewhere, tuple(faulty))


def _schema_of(storage: StudyStorage, key: str) -> pl.Schema | None:
    try:
        return storage.schema(key)
    except StorageError:
        return None
