"""The books of a batch: rejected records one by one, all records counted by what became of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.records.tables import COUNTS_SCHEMA, REJECTS_SCHEMA
from backfill_dagster.repos.cid import cid_text, is_repo_cid

if TYPE_CHECKING:
    from backfill_dagster.records.outcomes import Fate
    from backfill_dagster.records.settings import RecordSettings

# Longer than a message worth reading; a decoder's can quote the whole of a hostile key.
_DETAIL_CHARACTERS = 200


def record_uri() -> pl.Expr:
    """Write the AT-URI of rows with `did`, `collection` and `rkey`; null if one of them is."""
    return pl.concat_str(pl.lit("at://"), "did", pl.lit("/"), "collection", pl.lit("/"), "rkey").alias("uri")


def only_table(collection: str | None, settings: RecordSettings) -> str | None:
    """Name the table of a collection; None for one that feeds none, or more than one."""
    tables = settings.tables_of(collection)
    return tables[0] if len(tables) == 1 else None


def list_rejects(rows: pl.DataFrame) -> pl.DataFrame:
    """Make `REJECTS_SCHEMA` of rows with their key, the CID's bytes, `reason` and `detail`."""
    if rows.is_empty():
        return REJECTS_SCHEMA.to_frame()
    cids = [cid_text(cid) if is_repo_cid(cid) else None for cid in rows["cid"]]
    detail = pl.col("detail").str.slice(0, _DETAIL_CHARACTERS)
    listed = rows.with_columns(record_uri(), detail, cid=pl.Series(cids, dtype=pl.String))
    return listed.select(REJECTS_SCHEMA.names()).match_to_schema(REJECTS_SCHEMA)


def count_by(rows: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """Count rows by the values of some columns: each of these tuples ends with how many rows there are."""
    if rows.is_empty():
        return []
    if len(columns) == 1:
        # Rows of the same account stand together, as a rule; if not, it is counted in pieces.
        runs = rows[columns[0]].rle().struct
        return list(zip(runs.field("value"), runs.field("len"), strict=True))
    return rows.group_by(columns).len().rows()


class Books:
    """Counts records by account, collection, table, fate and reason."""

    def __init__(self) -> None:
        self._records: Counter[tuple[str | None, ...]] = Counter()

    def add(
        self,
        records: int,
        *,
        did: str | None,
        collection: str | None,
        table: str | None,
        fate: Fate,
        reason: str | None,
    ) -> None:
        """Add records of one kind."""
        self._records[did, collection, table, fate.value, reason] += records

    def by_account(self) -> dict[str | None, int]:
        """Return how many records there are of each account."""
        accounts: Counter[str | None] = Counter()
        for (did, *_), records in self._records.items():
            accounts[did] += records
        return dict(accounts)

    def frame(self) -> pl.DataFrame:
        """Return `COUNTS_SCHEMA`, sorted, so that the same records give the same frame."""
        # Null comes first, as when Polars sorts; for so few rows that takes longer.
        kinds = sorted(self._records, key=lambda kind: [(value is not None, value or "") for value in kind])
        rows = [(*kind, self._records[kind]) for kind in kinds]
        return pl.DataFrame(rows, schema=COUNTS_SCHEMA, orient="row")
