"""The tables of collected accounts and of runs, in the form that a store's items have, as the previous system's had."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.metadata_stores.bodies import bounded
from backfill_dagster.metadata_stores.items import TIME_FORMAT, RunItem
from backfill_dagster.monitoring.audit_log import RunStatus
from backfill_dagster.records.tables import TABLE_BY_NAME, TABLES

if TYPE_CHECKING:
    from datetime import datetime

USER_METADATA_KEY = "user_metadata.parquet"
RUN_METADATA_KEY = "run_metadata.parquet"
SERVICE = "backfill_dagster"
_IN_STORE = Column(
    "in_store", pl.Boolean(), "Whether the row is in the study's metadata store as it is here.", required=True
)

USER_COLUMNS = (
    Column("did", pl.String(), "The account's DID.", required=True),
    Column("bluesky_handle", pl.String(), "Its handle; empty if none is known.", required=True),
    Column(
        "types", pl.String(), "The kinds of its records in the tables, with commas between.", required=True
    ),
    Column("total_records", pl.Int64(), "Its records in the tables.", required=True),
    Column("total_records_by_type", pl.String(), "These by kind, as JSON.", required=True),
    Column(
        "pds_service_endpoint",
        pl.String(),
        "Origin of its PDS by the directory; empty if there is none by now.",
        required=True,
    ),
    Column(
        "timestamp",
        pl.String(),
        "When its snapshot was fetched, in UTC, as YYYY-MM-DD-HH:MM:SS.",
        required=True,
    ),
    _IN_STORE,
)
USER_SCHEMA = schema_of(USER_COLUMNS)
# Columns of the table of accounts that its rows are made of, beside those of the tables.
USER_ROW_COLUMNS = ("did", "handle", "pds", "obtained", "snapshot_fetched_at")

RUN_COLUMNS = (
    Column("run_id", pl.String(), "Dagster's identifier of the run, as in the audit log.", required=True),
    Column("service", pl.String(), f"What ran: `{SERVICE}`.", required=True),
    Column(
        "timestamp",
        pl.String(),
        "When it ended, or began if it has not ended, in UTC, as YYYY-MM-DD-HH:MM:SS.",
        required=True,
    ),
    Column(
        "status_code",
        pl.Int64(),
        "200 if it did all, 500 if it failed or died, 499 if it was canceled, 102 while it runs.",
        required=True,
    ),
    Column("body", pl.String(), "What it did, as JSON: accounts, records, rows by table.", required=True),
    Column(
        "metadata",
        pl.String(),
        "What it was, as JSON: study, job, stages, who started it, with which settings and code.",
        required=True,
    ),
    _IN_STORE,
)
RUN_SCHEMA = schema_of(RUN_COLUMNS)

_STATUS_CODES = {
    RunStatus.SUCCESS: 200,
    RunStatus.FAILED: 500,
    RunStatus.DIED: 500,
    RunStatus.CANCELED: 499,
    RunStatus.RUNNING: 102,
}
# Of the audit log, what says what a run was; the rest says what it did.
_WHAT_IT_WAS = (
    "job",
    "stages",
    "started_by",
    "started_at",
    "ended_at",
    "config_hash",
    "code_version",
    "settings",
)
_WRITTEN_AS_JSON = ("settings", "rows_by_table", "counts")


def user_rows(accounts: pl.DataFrame) -> pl.DataFrame:
    """Return the rows (USER_SCHEMA, none in the store) of those accounts that have been collected, by DID."""
    tables = [table for table in TABLES if table in accounts.columns]
    kinds = {table: TABLE_BY_NAME[table].record_type for table in tables}
    present = [pl.when(pl.col(table) > 0) for table in tables]
    names = [when.then(pl.lit(kind)) for when, kind in zip(present, kinds.values(), strict=True)]
    counts = [
        when.then(pl.format('"{}": {}', pl.lit(kind), pl.col(table)))
        for when, (table, kind) in zip(present, kinds.items(), strict=True)
    ]
    by_kind = pl.concat_list(counts).list.drop_nulls().list.join(", ")
    rows = accounts.filter(pl.col("obtained").is_not_null()).select(
        "did",
        bluesky_handle=pl.col("handle").fill_null(""),
        types=pl.concat_list(names).list.drop_nulls().list.join(","),
        total_records=pl.sum_horizontal(tables),
        total_records_by_type=pl.lit("{") + by_kind + pl.lit("}"),
        pds_service_endpoint=pl.col("pds").fill_null(""),
        timestamp=pl.col("snapshot_fetched_at").dt.strftime(TIME_FORMAT).fill_null(""),
        in_store=pl.lit(value=False),
    )
    return rows.cast(USER_SCHEMA).sort("did")


def run_rows(study: str, audit_log: pl.DataFrame) -> pl.DataFrame:
    """Return the rows (RUN_SCHEMA, none in the store) of the runs that a study's audit log has, in its order."""
    items = [_run_item(study, row) for row in audit_log.iter_rows(named=True)]
    return pl.DataFrame(
        [
            (run.run_id, run.service, run.timestamp, run.status_code, run.body, run.metadata, False)
            for run in items
        ],
        schema=RUN_SCHEMA,
        orient="row",
    )


def _run_item(study: str, row: dict[str, Any]) -> RunItem:
    told = {name: _plain(name, value) for name, value in row.items() if value is not None}
    ended: datetime = row["ended_at"] or row["started_at"]
    was = {name: told[name] for name in _WHAT_IT_WAS if name in told}
    did = {name: value for name, value in told.items() if name not in (*_WHAT_IT_WAS, "run_id")}
    return bounded(
        RunItem(
            run_id=row["run_id"],
            service=SERVICE,
            timestamp=ended.strftime(TIME_FORMAT),
            status_code=_STATUS_CODES[RunStatus(row["status"])],
            body=json.dumps(did, sort_keys=True),
            metadata=json.dumps({"backfill": study, **was}, sort_keys=True),
        )
    )


def _plain(name: str, value: Any) -> Any:
    if name in _WRITTEN_AS_JSON:
        return json.loads(value)
    return value.strftime(TIME_FORMAT) if name in ("started_at", "ended_at") else value
