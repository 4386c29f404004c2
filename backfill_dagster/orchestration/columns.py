"""The columns of a study's assets as Dagster shows them: types, meanings, and what each is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster import study_files
from backfill_dagster.columns import type_name
from backfill_dagster.derivation import DERIVED
from backfill_dagster.dictionary.resources import study_resources
from backfill_dagster.records.tables import TABLE_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.columns import Column
    from backfill_dagster.config.study import Study

# Columns of an account that are taken over from another asset under the same or another name.
_ACCOUNT_SOURCES = {
    "did": ("source_dids", "did"),
    "handle": ("directory", "handle"),
    "pds": ("directory", "pds"),
    "pds_host": ("directory", "pds_host"),
    "repo_rev": ("repos", "repo_rev"),
    "snapshot_fetched_at": ("repos", "fetched_at"),
    "signed_by": ("repos", "signed_by"),
    "attempts": ("repos", "attempts"),
    "http_status": ("repos", "http_status"),
    "bytes_received": ("repos", "bytes_received"),
    "detail": ("repos", "detail"),
    "records_fetched": ("repos", "records"),
    "records_absent": ("repos", "absent"),
    "obtained": ("repos", "obtained"),
}
_DERIVED = frozenset(
    (
        *(*DERIVED, "engaged_accounts", "engaged_posts"),
        *("record_changes", "account_history", "attrition", "rehydration"),
    )
)
# Columns of a record that its repository, rather than its own bytes, tells.
_OF_THE_REPOSITORY = {"did": "did", "repo_rev": "repo_rev", "pds": "pds", "obtained": "obtained"}


def column_metadata(study: Study, asset: str) -> dict[str, dg.TableSchema | dg.TableColumnLineage]:
    """Return the column schema of an asset, and its column lineage, as metadata of its definition."""
    columns = _columns(study, asset)
    schema = dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type_name(column.dtype),
                column.description,
                constraints=dg.TableColumnConstraints(nullable=not column.required),
            )
            for column in columns
        ]
    )
    sources = {column.name: [source] for column in columns if (source := _source(asset, column.name))}
    lineage = {
        column: [dg.TableColumnDep(dg.AssetKey([study.name, upstream]), name) for upstream, name in origins]
        for column, origins in sources.items()
    }
    return {
        "dagster/column_schema": schema,
        **({"dagster/column_lineage": dg.TableColumnLineage(lineage)} if lineage else {}),
    }


def _columns(study: Study, asset: str) -> Iterable[Column]:
    """Return the columns of an asset's rows; of one that is several tables, those of all of them."""
    if asset in ("records", "undated"):
        tables = study_files.study_tables(study)
        return {column.name: column for table in tables for column in TABLE_BY_NAME[table].columns}.values()
    stored = {resource.name: resource.columns for resource in study_resources(study)}
    return stored["packs" if asset == "repos" else asset]


def _source(asset: str, column: str) -> tuple[str, str] | None:
    """Return the upstream asset and column that a column is made of; None for one that this asset makes."""
    match asset:
        case "source_dids" | "audit_log":
            return None
        case "directory":
            return ("source_dids", "did") if column == "did" else None
        case "repos":
            return ("directory", column) if column in ("did", "pds") else None
        case "records":
            return "repos", _OF_THE_REPOSITORY.get(column, "blocks_files")
        case "user_metadata" | "run_metadata":
            return ("accounts", "did") if column == "did" else None
        case "accounts":
            if column in TABLE_BY_NAME:
                return column, "uri"
            return _ACCOUNT_SOURCES.get(column)
        case derived if derived in _DERIVED:
            # Of several tables, or counted.
            return None
        case _:
            return "records", column
