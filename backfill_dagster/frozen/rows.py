"""Purged accounts and records taken out of rows that are not made anew of packs: what a frozen build holds.

What is left of the rows is what the live tables hold after the same purge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.attrition.steps import NO_ACCOUNT, NO_HOST, UNKNOWN, Breakdown
from backfill_dagster.purge.mentions import MASKED_DID
from backfill_dagster.purge.tombstones import PURGED
from backfill_dagster.records.first_for_subject import SUBJECT_COLUMNS, mark_firsts
from backfill_dagster.records.tables import TABLE_BY_NAME, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage

_NAMING = ("did", "collection", "rkey")


def without_purged(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Return rows of any table without those of purged accounts and of purged records, the others masked.

    Records are known by the columns `did, collection, rkey`, accounts by `did` alone.
    """
    if "did" in rows.columns:
        purged = pl.col("did").is_in(tombstones.held_among(rows["did"]))
        rows = rows.filter(~purged.fill_null(value=False))
    if set(_NAMING) <= set(rows.columns):
        rows = _without_records(rows, tombstones)
    return tombstones.mask_texts(rows)


def _without_records(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    partly = [did for did in rows["did"].unique().drop_nulls() if tombstones.holds_records_of(did)]
    naming = pl.any_horizontal(pl.col("collection", "rkey").str.contains("did", literal=True))
    # To look at every row by itself would take far longer.
    suspects = rows.select(pl.col("did").is_in(partly) | naming).to_series().arg_true()
    keys = [rows[suspects][name].to_list() for name in _NAMING]
    withheld = [suspects[place] for place in tombstones.withheld_rows(*keys)]
    if not withheld:
        return rows
    return rows.filter(~pl.int_range(pl.len()).is_in(withheld))


def settled_firsts(
    storage: StudyStorage, table: str, keys: Sequence[str], tombstones: Tombstones
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield those files of a table (key, rows) in which `first_for_subject` is another without what was purged.

    `keys` are all files of the table. Of two subjects that are masked nobody can tell whether they are the same, and
    where an account's first record about a subject is gone, the next one is the first.
    """
    if table not in SUBJECT_COLUMNS or not keys:
        return
    subject, schema = pl.col(SUBJECT_COLUMNS[table]), TABLE_BY_NAME[table].schema
    frames = [storage.scan([key], schema).with_row_index("row") for key in keys]
    partly: list[str] = []
    if tombstones.records:
        [dids] = storage.collect([pl.concat([frame.select("did").unique() for frame in frames])], keys)
        partly = [did for did in dids["did"].unique().drop_nulls() if tombstones.holds_records_of(did)]
    affected = pl.col("did").is_in(partly) | subject.str.contains(MASKED_DID).fill_null(value=False)
    columns = ("did", subject, "created_at", "date_quality", "rkey", "row")
    found = pl.concat(
        frame.filter(affected).select(*columns, file=pl.lit(number), stored="first_for_subject")
        for number, frame in enumerate(frames)
    )
    [rows] = storage.collect([found], keys, engine="streaming")
    settled = mark_firsts(rows.with_columns(first_for_subject=pl.lit(None, pl.Boolean)), table)
    wrong = settled.filter(pl.col("stored").ne_missing(pl.col("first_for_subject"))).sort("file", "row")
    for (number,), changed in wrong.partition_by("file", as_dict=True).items():
        stored = storage.read(keys[number])
        first = stored["first_for_subject"].scatter(changed["row"], changed["first_for_subject"])
        yield keys[number], stored.with_columns(first_for_subject=first)


def recounted_accounts(accounts: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Return the table of accounts with what the tables still hold of those of which single records were purged.

    `kept` (KEPT_SCHEMA) is what the tables hold of them. What they hold no more counts as filtered, as purged.
    """
    counted = {row["did"]: row for row in kept.iter_rows(named=True)}
    tables = [name for name in TABLES if name in accounts.columns]
    changed = []
    for row in accounts.filter(pl.col("did").is_in(list(counted))).iter_rows(named=True):
        now = counted[row["did"]]
        gone = row["records_kept"] - sum(now[name] for name in tables)
        if gone:
            changed.append(_recounted(row, now, tables, gone))
    if not changed:
        return accounts
    rows = pl.DataFrame(changed, schema=accounts.schema)
    others = accounts.join(rows.select("did"), on="did", how="anti")
    return pl.concat([others, rows]).sort("did")


def _recounted(row: dict[str, Any], now: dict[str, Any], tables: list[str], gone: int) -> dict[str, Any]:
    filtered = {each["reason"]: each["records"] for each in row["filtered"] or ()}
    filtered[PURGED] = filtered.get(PURGED, 0) + gone
    return {
        **row,
        **{name: now[name] for name in (*tables, "undated", "with_issues")},
        "records_kept": row["records_kept"] - gone,
        "records_filtered": row["records_filtered"] + gone,
        "filtered": [{"reason": reason, "records": filtered[reason]} for reason in sorted(filtered)],
        "first_created_at": now["first"],
        "last_created_at": now["last"],
    }


def without_lost_hosts(attrition: pl.DataFrame, hosts: Sequence[str]) -> pl.DataFrame:
    """Return the table of attrition without the classes of hosts on which no account is left.

    A host can be called like the one account on it. All sums stay what they were.
    """
    known = [*hosts, NO_HOST, NO_ACCOUNT, UNKNOWN]
    return attrition.filter((pl.col("by") != Breakdown.HOST.value) | pl.col("class").is_in(known))
