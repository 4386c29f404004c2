"""The time of each record: what its client wrote, the instant it names, and what the study makes of it."""

from typing import Any

import polars as pl

from backfill_dagster.records.date_quality import date_quality, is_undated
from backfill_dagster.records.fields import text_series
from backfill_dagster.records.issues import FieldProblem, problem_of
from backfill_dagster.records.period import is_in_period, sync_timestamp
from backfill_dagster.records.settings import StudyPeriod
from backfill_dagster.records.timestamps import read_datetimes

_NOT_WRITTEN = [FieldProblem.MISSING.value, FieldProblem.NULL.value]


def read_created_at(records: list[dict[str, Any]]) -> pl.DataFrame:
    """Take `createdAt` where it is a string, as `created_at_raw`; elsewhere say why not, as `created_at_problem`."""
    values = [record.get("createdAt") for record in records]
    problems: list[str | None] = [None] * len(records)
    if set(map(type, values)) != {str}:
        for row, value in enumerate(values):
            if type(value) is not str:
                problems[row] = problem_of(records[row], "createdAt", FieldProblem.NOT_A_STRING).value
                values[row] = None
    return pl.DataFrame({"created_at_raw": text_series(values), "created_at_problem": text_series(problems)})


def date_rows(rows: pl.DataFrame, written: pl.DataFrame, period: StudyPeriod) -> pl.DataFrame:
    """Add the columns of time to rows that have `rkey_time` and `fetched_at`, given what `read_created_at` reads.

    Adds `created_at_raw`, `created_at`, `date_quality`, `in_range`, `sync_timestamp`, and for further
    use `created_at_problem` (a value of `FieldProblem`, or null).
    """
    read = read_datetimes(written["created_at_raw"])
    created_at, undated = pl.col("created_at"), is_undated(pl.col("date_quality"))
    return (
        rows.lazy()
        .with_columns(
            created_at_raw=written["created_at_raw"],
            created_at=read["instant"],
            created_at_problem=pl.coalesce(written["created_at_problem"], read["problem"]),
        )
        .with_columns(
            date_quality=date_quality(
                created_at,
                ~pl.col("created_at_problem").is_in(_NOT_WRITTEN).fill_null(value=False),
                pl.col("rkey_time"),
                pl.col("fetched_at"),
            )
        )
        .with_columns(in_range=~undated & is_in_period(created_at, period))
        .with_columns(sync_timestamp=pl.when(~undated).then(sync_timestamp(created_at, pl.col("in_range"))))
        .collect(engine="in-memory")
    )
