"""What stands in a list that a filter names, and whether it can keep any record."""

from __future__ import annotations

from typing import Literal, TypeAlias

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.dids.syntax import stripped
from backfill_dagster.records import syntax
from backfill_dagster.records.tables import BLOCK, FOLLOW

# The fields of a filter that are lists.
ListField: TypeAlias = Literal["uris", "subjects"]

# Of these collections the subject is an account.
_ABOUT_ACCOUNTS = (FOLLOW, BLOCK)


class ListRejection(ClosedSet):
    """Why an entry of a filter's list can keep no record."""

    NOT_AN_AT_URI = "not_an_at_uri", "It is no AT-URI."
    NOT_A_RECORD = "not_a_record", "It is the AT-URI of an account or a collection."
    HANDLE = (
        "handle",
        "It is an AT-URI that names its account by a handle, which those in tables never do.",
        "Write the account's DID in its place.",
    )
    OTHER_COLLECTION = "other_collection", "It is of another collection than the one that the filter is for."
    NOT_A_DID = "not_a_did", "It is no DID, and the subjects of follows and blocks are accounts."
    PURGED = "purged", "It names an account or a record that the study has purged."


def judge_entries(entries: pl.DataFrame, collection: str, field: ListField) -> pl.DataFrame:
    """Return `did, entry, reason` of what stands in a list (ENTRIES_SCHEMA), and what else is told of it.

    The reason, which is null for what can keep records of the collection, is the source's own if it has one.
    """
    entry = pl.col("entry")
    is_did = _matches(entry, syntax.DID, syntax.MAX_DID_BYTES)
    is_uri = _matches(entry, syntax.AT_URI, syntax.MAX_AT_URI_BYTES)
    # at: // authority / collection / rkey
    parts = entry.str.splitn("/", 5).struct
    names_account = parts.field("field_2").str.starts_with("did:")
    is_record = parts.field("field_4").is_not_null()
    of_records = (
        pl.when(~is_uri)
        .then(pl.lit(ListRejection.NOT_AN_AT_URI.value))
        .when(~names_account)
        .then(pl.lit(ListRejection.HANDLE.value))
        .when(~is_record)
        .then(pl.lit(ListRejection.NOT_A_RECORD.value))
    )
    reason: pl.Expr
    did: pl.Expr
    if field == "uris":
        is_other = parts.field("field_3") != collection
        other = pl.when(is_other).then(pl.lit(ListRejection.OTHER_COLLECTION.value))
        reason, did = pl.coalesce(of_records, other), parts.field("field_2")
    elif collection in _ABOUT_ACCOUNTS:
        reason, did = pl.when(~is_did).then(pl.lit(ListRejection.NOT_A_DID.value)), entry
    else:
        reason = pl.when(~is_did).then(of_records)
        did = pl.when(is_did).then(entry).otherwise(parts.field("field_2"))
    given = entries.with_columns(entry=stripped(entry))
    why = pl.coalesce("reason", reason).alias("reason")
    return given.select(did.alias("did"), entry, why, pl.exclude("input", "entry", "reason"))


def _matches(text: pl.Expr, pattern: str, max_bytes: int) -> pl.Expr:
    is_match = text.str.contains(syntax.whole(pattern)) & (text.str.len_bytes() <= max_bytes)
    return is_match.fill_null(value=False)
