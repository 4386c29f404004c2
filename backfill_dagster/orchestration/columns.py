"""The columns of a study's assets as Dagster shows them: types, meanings, and what each is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from backfill_dagster import study_files
from backfill_dagster.derivation import DERIVED
from backfill_dagster.derived.engaged import ENGAGED_ACCOUNTS, ENGAGED_POSTS
from backfill_dagster.directory.resolve import DIRECTORY_COLUMNS
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.repos.packs import PACK_COLUMNS
from backfill_dagster.tables.accounts import account_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backfill_dagster.config.study import Study
    from backfill_dagster.records.tables import Column

_Columns = dict[str, tuple[pl.DataType, str]]

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
_DERIVED = {
    **{name: derived.columns for name, derived in DERIVED.items()},
    "engaged_accounts": ENGAGED_ACCOUNTS,
    "engaged_posts": ENGAGED_POSTS,
}
# Columns of a record that its repository, rather than its own bytes, tells.
_OF_THE_REPOSITORY = {"did": "did", "repo_rev": "repo_rev", "pds": "pds", "obtained": "obtained"}


def column_metadata(study: Study, asset: str) -> dict[str, dg.TableSchema | dg.TableColumnLineage]:
    """Return the column schema of an asset, and its column lineage, as metadata of its definition."""
    columns = _columns(study, asset)
    schema = dg.TableSchema(
        columns=[dg.TableColumn(name, _type_name(kind), text) for name, (kind, text) in columns.items()]
    )
    sources = {name: [source] for name in columns if (source := _source(asset, name))}
    lineage = {
        column: [dg.TableColumnDep(dg.AssetKey([study.name, upstream]), name) for upstream, name in origins]
        for column, origins in sources.items()
    }
    return {
        "dagster/column_schema": schema,
        **({"dagster/column_lineage": dg.TableColumnLineage(lineage)} if lineage else {}),
    }


def _type_name(kind: object) -> str:
    """Name the type of a column as it stands in Parquet, whatever that is read with."""
    if isinstance(kind, pl.List):
        return f"list<{_type_name(kind.inner)}>"
    if isinstance(kind, pl.Struct):
        return f"struct<{', '.join(f'{field.name}: {_type_name(field.dtype)}' for field in kind.fields)}>"
    if isinstance(kind, pl.Datetime):
        return f"timestamp[{kind.time_unit}, {kind.time_zone or 'no zone'}]"
    return str(kind).lower()


def _columns(study: Study, asset: str) -> Mapping[str, tuple[pl.DataType, str]]:
    match asset:
        case "source_dids":
            return {"did": (pl.String(), "DID of an account of the study, each once.")}
        case "directory":
            return DIRECTORY_COLUMNS
        case "repos":
            return PACK_COLUMNS
        case "accounts":
            return account_columns(study_files.study_tables(study))
        case derived if derived in _DERIVED:
            return _described(_DERIVED[derived])
        case "records" | "undated":
            merged: _Columns = {}
            for table in study_files.study_tables(study):
                for column in TABLE_BY_NAME[table].columns:
                    merged.setdefault(column.name, (column.dtype, column.description))
            return merged
        case _:
            return _of_table(asset)


def _of_table(table: str) -> _Columns:
    return _described(TABLE_BY_NAME[table].columns)


def _described(columns: Iterable[Column]) -> _Columns:
    return {column.name: (column.dtype, column.description) for column in columns}


def _source(asset: str, column: str) -> tuple[str, str] | None:
    """Return the upstream asset and column that a column is made of; None for one that this asset makes."""
    match asset:
        case "source_dids":
            return None
        case "directory":
            return ("source_dids", "did") if column == "did" else None
        case "repos":
            return ("directory", column) if column in ("did", "pds") else None
        case "records":
            return "repos", _OF_THE_REPOSITORY.get(column, "blocks_files")
        case "accounts":
            if column in TABLE_BY_NAME:
                return column, "uri"
            return _ACCOUNT_SOURCES.get(column)
        case derived if derived in _DERIVED:
            # Of several tables, or counted.
            return None
        case _:
            return "records", column
