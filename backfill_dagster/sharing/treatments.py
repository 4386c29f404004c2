"""What becomes of every column when tables are shared under pseudonyms: one declared map, and nothing by default.

A column that the map does not name is an error, so that a new one cannot be handed on by oversight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.errors import ReconciliationError
from backfill_dagster.purge.mentions import MASKED_DID
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import COLLECTIONS, TABLE_BY_NAME, TABLES
from backfill_dagster.tables.accounts import account_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.columns import Column
    from backfill_dagster.sharing.pseudonyms import Pseudonyms

_ACCOUNTS = "accounts"


class Treatment(ClosedSet):
    """What becomes of a column when tables are shared under pseudonyms."""

    KEPT = "kept", "It stands there as it is: a number, a yes or no, or a word out of a closed set."
    PSEUDONYM = (
        "pseudonym",
        "A hash made with a secret stands for each DID and AT-URI; null where a purged account is masked.",
    )
    COARSENED = (
        "coarsened",
        "The time is cut off to the day, the hour or the second; null where no date is believed.",
    )
    KNOWN = "known", "Only words that everybody uses stand there; what a client made up is null."
    LANGUAGE = "language", "Of each tag only the language stands there, such as `pt` of `pt-BR`."
    DROPPED = "dropped", "It is left out: it is text, or leads to the record on the network."


_KEPT, _PSEUDONYM, _COARSENED = Treatment.KEPT, Treatment.PSEUDONYM, Treatment.COARSENED
_KNOWN, _LANGUAGE, _DROPPED = Treatment.KNOWN, Treatment.LANGUAGE, Treatment.DROPPED

# Of the record tables; a name means the same in each.
RECORD_TREATMENTS: dict[str, Treatment] = {
    "did": _PSEUDONYM,
    "collection": _KEPT,
    "rkey": _DROPPED,
    "uri": _PSEUDONYM,
    "cid": _DROPPED,
    "repo_rev": _DROPPED,
    # Some host one account alone.
    "pds": _DROPPED,
    "obtained": _KEPT,
    "record_type": _KEPT,
    "created_at_raw": _DROPPED,
    "created_at": _COARSENED,
    "sync_timestamp": _COARSENED,
    "in_range": _KEPT,
    "rkey_time": _DROPPED,
    "date_quality": _KEPT,
    # They name fields, and of maps the keys that a client made up.
    "issues": _DROPPED,
    "record": _DROPPED,
    "text": _DROPPED,
    "langs": _LANGUAGE,
    "tags": _DROPPED,
    "labels": _KNOWN,
    "embed_type": _KNOWN,
    "embed": _DROPPED,
    "external_uri": _DROPPED,
    "media_types": _KNOWN,
    "alt_texts": _DROPPED,
    "blob_cids": _DROPPED,
    "facets": _DROPPED,
    "facet_links": _DROPPED,
    "facet_mentions": _PSEUDONYM,
    "facet_tags": _DROPPED,
    "reply_parent_uri": _PSEUDONYM,
    "reply_parent_cid": _DROPPED,
    "reply_parent_did": _PSEUDONYM,
    "reply_root_uri": _PSEUDONYM,
    "reply_root_cid": _DROPPED,
    "reply_root_did": _PSEUDONYM,
    "quoted_uri": _PSEUDONYM,
    "quoted_cid": _DROPPED,
    "quoted_did": _PSEUDONYM,
    "subject_uri": _PSEUDONYM,
    "subject_cid": _DROPPED,
    "subject_did": _PSEUDONYM,
    "subject_collection": _KNOWN,
    "via_uri": _PSEUDONYM,
    "first_for_subject": _KEPT,
    "display_name": _DROPPED,
    "description": _DROPPED,
    "pronouns": _DROPPED,
    "website": _DROPPED,
    "avatar_cid": _DROPPED,
    "banner_cid": _DROPPED,
    "pinned_post_uri": _PSEUDONYM,
    "joined_via_starter_pack": _PSEUDONYM,
}
# Of the table of accounts. What is not told by the shared tables themselves would only help to find an account.
ACCOUNT_TREATMENTS: dict[str, Treatment] = {
    "did": _PSEUDONYM,
    "handle": _DROPPED,
    "pds": _DROPPED,
    "pds_host": _DROPPED,
    "state": _KEPT,
    "reason": _KEPT,
    "detail": _DROPPED,
    "in_source": _KEPT,
    "shown": _KEPT,
    "obtained": _KEPT,
    "repo_rev": _DROPPED,
    "snapshot_host": _DROPPED,
    "snapshot_fetched_at": _COARSENED,
    "signed_by": _KEPT,
    "attempts": _DROPPED,
    "http_status": _DROPPED,
    "bytes_received": _DROPPED,
    "records_fetched": _DROPPED,
    "records_absent": _DROPPED,
    "records_kept": _DROPPED,
    "records_filtered": _DROPPED,
    "records_rejected": _DROPPED,
    "filtered": _DROPPED,
    "rejected": _DROPPED,
    **dict.fromkeys(TABLES, _KEPT),
    "undated": _KEPT,
    "with_issues": _DROPPED,
    "first_created_at": _COARSENED,
    "last_created_at": _COARSENED,
}
# What stands in a column of which only known words are kept.
KNOWN_WORDS: dict[str, tuple[str, ...]] = {
    # https://atproto.com/specs/label#global-label-values, and the older ones of the reference app.
    "labels": (
        *("!hide", "!warn", "!no-unauthenticated", "porn", "sexual", "nudity", "graphic-media"),
        *("gore", "nsfl", "bot"),
    ),
    "embed_type": (
        "app.bsky.embed.images",
        "app.bsky.embed.video",
        "app.bsky.embed.external",
        "app.bsky.embed.record",
        "app.bsky.embed.recordWithMedia",
    ),
    "media_types": (
        *("image/jpeg", "image/png", "image/webp", "image/gif", "image/avif", "image/heic"),
        *("video/mp4", "video/webm", "video/quicktime", "video/mpeg"),
    ),
    "subject_collection": (*COLLECTIONS, "app.bsky.feed.generator", "app.bsky.graph.list"),
}
_TAG = r"^([A-Za-z]{2,3})(?:-|$)"


def columns_of(table: str) -> tuple[Column, ...]:
    """Return the columns of a record table, or of the table of accounts of a study that has all record tables."""
    return account_columns(TABLES) if table == _ACCOUNTS else TABLE_BY_NAME[table].columns


def treatments_of(table: str, columns: Sequence[str]) -> dict[str, Treatment]:
    """Return what becomes of these columns of a table; raises ReconciliationError for one that is not classified."""
    known = ACCOUNT_TREATMENTS if table == _ACCOUNTS else RECORD_TREATMENTS
    if strange := sorted(set(columns) - known.keys()):
        raise ReconciliationError(
            f"the columns {', '.join(strange)} of {table} are not classified, and so cannot be shared"
        )
    return {name: known[name] for name in columns}


def treated(table: str, rows: pl.DataFrame, pseudonyms: Pseudonyms, created_at: str) -> pl.DataFrame:
    """Return a table's rows as they are shared; times to the `second`, `hour` or `day`."""
    kept = {
        name: treatment
        for name, treatment in treatments_of(table, rows.columns).items()
        if treatment is not _DROPPED
    }
    of_treatment = {
        wanted: [name for name, treatment in kept.items() if treatment is wanted] for wanted in Treatment
    }
    step = {"second": "1s", "hour": "1h", "day": "1d"}[created_at]
    coarse = pl.col(of_treatment[_COARSENED]).dt.truncate(step)
    if "date_quality" in rows.columns:
        coarse = pl.when(~is_undated(pl.col("date_quality"))).then(coarse)
    named = rows.select(_unmasked(name, rows.schema[name]) for name in of_treatment[_PSEUDONYM])
    hashed = [pseudonyms.of_column(names) for names in named]
    return rows.select(list(kept)).with_columns(
        *([coarse] if of_treatment[_COARSENED] else []),
        *hashed,
        *(_only_known(name, rows.schema[name]) for name in of_treatment[_KNOWN]),
        *(_languages(name) for name in of_treatment[_LANGUAGE]),
    )


def _unmasked(name: str, dtype: pl.DataType) -> pl.Expr:
    # All purged accounts look alike: under a pseudonym they would be taken for one that everybody knows.
    def own(value: pl.Expr) -> pl.Expr:
        return pl.when(~value.str.contains(MASKED_DID)).then(value)

    return pl.col(name).list.eval(own(pl.element())) if isinstance(dtype, pl.List) else own(pl.col(name))


def _only_known(name: str, dtype: pl.DataType) -> pl.Expr:
    def known(value: pl.Expr) -> pl.Expr:
        return pl.when(value.is_in(KNOWN_WORDS[name])).then(value)

    return pl.col(name).list.eval(known(pl.element())) if isinstance(dtype, pl.List) else known(pl.col(name))


def _languages(name: str) -> pl.Expr:
    return pl.col(name).list.eval(pl.element().str.extract(_TAG, 1).str.to_lowercase())
