"""Studies made of a few stored frames, without a network: what a report reads and nothing else."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from backfill_dagster import study_files
from backfill_dagster.config.study import Study
from backfill_dagster.records.tables import TABLE_BY_NAME, USUAL_TABLES
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.tables.accounts import ACCOUNTS_SCHEMA

FETCHED_AT = datetime(2025, 3, 1, 12, 30, tzinfo=UTC)

Row = Mapping[str, Any]


def did_of(number: int) -> str:
    return f"did:plc:{number:024d}"


def account(number: int, host: str | None, state: str = "complete", **columns: Any) -> dict[str, Any]:
    """Return a row of the table of accounts; a complete one has a snapshot."""
    complete = state == "complete"
    return {
        "did": did_of(number),
        "handle": f"person-{number}.example",
        "pds_host": host,
        "state": state,
        "in_source": True,
        "shown": True,
        "repo_rev": "3l5uvwqz2fk2k" if complete else None,
        "signed_by": "current" if complete else None,
        "snapshot_fetched_at": FETCHED_AT if complete else None,
        **dict.fromkeys(
            (
                "records_fetched",
                "records_kept",
                "records_filtered",
                "records_rejected",
                "undated",
                *USUAL_TABLES,
            ),
            0,
        ),
        "filtered": [],
        "rejected": [],
        **columns,
    }


def record(number: int, created_at: datetime, *, in_range: bool = True) -> dict[str, Any]:
    """Return a row of a table, as far as a report reads it."""
    return {
        "did": did_of(number),
        "created_at": created_at,
        "in_range": in_range,
        "date_quality": "consistent",
    }


def attempt(number: int, outcome: str = "complete", **columns: Any) -> dict[str, Any]:
    """Return a row of a pack, as far as a report reads it."""
    return {
        "did": did_of(number),
        "outcome": outcome,
        "bytes_received": 10_000,
        "seconds": 0.5,
        "fetched_at": FETCHED_AT,
        **columns,
    }


def stored_study(
    folder: Path,
    accounts: Sequence[Row],
    *,
    attempts: Mapping[str, Sequence[Row]] | None = None,
    tables: Mapping[str, Sequence[Row]] | None = None,
    left_out: Sequence[str] = (),
    **parts: Any,
) -> Study:
    """Store the frames of a study; `attempts` are by host, `tables` by name."""
    study = Study.model_validate(
        {
            "name": "study",
            "source": {"type": "inline", "dids": [did_of(0)]},
            "storage": {"path": str(folder)},
            **parts,
        }
    )
    storage = StudyStorage(study.root)
    storage.write(study_files.ACCOUNTS_KEY, pl.DataFrame(accounts, schema=ACCOUNTS_SCHEMA, orient="row"))
    storage.write(
        study_files.SOURCE_REJECTS_KEY, pl.DataFrame({"reason": left_out}, schema={"reason": pl.String()})
    )
    for pack, (host, rows) in enumerate((attempts or {}).items()):
        storage.write(
            f"repos/{partition_folder(host)}/{pack:020x}.parquet", pl.DataFrame(rows, schema=PACK_SCHEMA)
        )
    for table, rows in (tables or {}).items():
        frame = pl.DataFrame(rows, schema=TABLE_BY_NAME[table].schema, orient="row")
        months = frame.with_columns(month=pl.col("created_at").dt.strftime("%Y-%m"))
        for (month,), part in months.partition_by("month", as_dict=True, include_key=False).items():
            storage.write(f"tables/{table}/month={month}/part-00000.parquet", part)
    return study
