"""The books of a batch: rejected records one by one, all records counted by what became of them."""

import polars as pl

from backfill_dagster.records.outcomes import Fate
from backfill_dagster.records.tables import COUNTS_SCHEMA, REJECTS_SCHEMA, TABLES_OF_COLLECTION
from backfill_dagster.repos.cid import cid_text, is_repo_cid

# Longer than a message worth reading; a decoder's can quote the whole of a hostile key.
_DETAIL_CHARACTERS = 200
_KIND = tuple(name for name in COUNTS_SCHEMA if name != "records")
_ONLY_TABLE = {
    collection: tables[0] for collection, tables in TABLES_OF_COLLECTION.items() if len(tables) == 1
}


def record_uri() -> pl.Expr:
    """Write the AT-URI of rows with `did`, `collection` and `rkey`; null if one of them is."""
    return pl.concat_str(pl.lit("at://"), "did", pl.lit("/"), "collection", pl.lit("/"), "rkey").alias("uri")


def only_table() -> pl.Expr:
    """Name the table of rows by their `collection`; null for one that feeds none, or more than one."""
    return pl.col("collection").replace_strict(_ONLY_TABLE, default=None, return_dtype=pl.String)


def list_rejects(rows: pl.DataFrame) -> pl.DataFrame:
    """Make `REJECTS_SCHEMA` of rows with their key, the CID's bytes, `reason` and `detail`."""
    cids = [cid_text(cid) if is_repo_cid(cid) else None for cid in rows["cid"]]
    detail = pl.col("detail").str.slice(0, _DETAIL_CHARACTERS)
    listed = rows.with_columns(record_uri(), detail, cid=pl.Series(cids, dtype=pl.String))
    return listed.select(REJECTS_SCHEMA.names()).match_to_schema(REJECTS_SCHEMA)


def count(rows: pl.DataFrame, table: pl.Expr, fate: Fate, reason: pl.Expr) -> pl.DataFrame:
    """Count rows with `did` and `collection` as `COUNTS_SCHEMA`."""
    kinds = rows.select(
        "did",
        "collection",
        table=table.cast(pl.String),
        fate=pl.lit(fate.value),
        reason=reason.cast(pl.String),
    )
    counted = kinds.group_by(_KIND).agg(records=pl.len().cast(pl.Int64))
    return counted.match_to_schema(COUNTS_SCHEMA)


def add_counts(counts: list[pl.DataFrame]) -> pl.DataFrame:
    """Add up counts of the same kind; sorted, so that the same records give the same frame."""
    return pl.concat(counts).group_by(_KIND).agg(pl.col("records").sum()).sort(_KIND)
