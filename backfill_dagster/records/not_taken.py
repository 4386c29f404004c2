"""What was asked for or listed and is not in a pack's blocks, as rows beside those of rejected records.

What is not there was no record, so that it is listed and counts as none; what was listed and could not be taken is a
rejected record like any other.
"""

from __future__ import annotations

import polars as pl

from backfill_dagster.records.accounting import record_uri
from backfill_dagster.records.outcomes import Fate
from backfill_dagster.records.tables import COUNTS_SCHEMA, REJECTS_SCHEMA
from backfill_dagster.repos.outcomes import NOT_THERE


def list_not_taken(accounts: pl.DataFrame) -> pl.DataFrame:
    """Return a row (REJECTS_SCHEMA) for each entry of these rows of a pack (`did`, `not_taken`)."""
    entries = (
        accounts.select("did", "not_taken")
        .explode("not_taken")
        .drop_nulls("not_taken")
        .select("did", pl.col("not_taken").struct.unnest())
    )
    listed = entries.with_columns(record_uri(), detail=pl.lit(None, pl.String))
    return listed.select(REJECTS_SCHEMA.names()).match_to_schema(REJECTS_SCHEMA)


def count_not_taken(listed: pl.DataFrame) -> pl.DataFrame:
    """Count those that are rejected records (COUNTS_SCHEMA)."""
    rejected = listed.filter(~pl.col("reason").is_in([reason.value for reason in NOT_THERE]))
    return (
        rejected.group_by("did", "collection", "reason")
        .agg(records=pl.len().cast(pl.Int64))
        .with_columns(table=pl.lit(None, pl.String), fate=pl.lit(Fate.REJECTED.value))
        .select(COUNTS_SCHEMA.names())
    )
