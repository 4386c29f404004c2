"""Whom and what the study's accounts engaged with in a period: the start of another backfill.

Two lists: `engaged_accounts`, less those that the study collects itself, and `engaged_posts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.dids.syntax import rejection_of
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import INSTANT, POST, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from backfill_dagster.config.derived import Interaction
    from backfill_dagster.derived.stored_tables import StoredTables
    from backfill_dagster.dids.did_ranges import DidRange

ENGAGED_ACCOUNTS_KEY = "engaged_accounts.parquet"
ENGAGED_POSTS_KEY = "engaged_posts.parquet"

# What counts as which interaction: the tables that hold it, the column of the post and that of its account.
_WHERE: dict[Interaction, tuple[tuple[str, str | None, str], ...]] = {
    "reply": (("replies", "reply_parent_uri", "reply_parent_did"),),
    "quote": (("posts", "quoted_uri", "quoted_did"), ("replies", "quoted_uri", "quoted_did")),
    "like": (("likes", "subject_uri", "subject_did"),),
    "repost": (("reposts", "subject_uri", "subject_did"),),
    "follow": (("follows", None, "subject_did"),),
}
_PLURALS: dict[Interaction, str] = {
    "reply": "replies",
    "quote": "quotes",
    "like": "likes",
    "repost": "reposts",
    "follow": "follows",
}
_OF_POSTS = [_PLURALS[kind] for kind in _PLURALS if kind != "follow"]
SOURCES = ("posts", "replies", "likes", "reposts", "follows")
# Interactions that are counted at once; of one, some two hundred bytes are held.
_AT_ONCE = 2_000_000


def _numbers(kinds: Sequence[str]) -> tuple[Column, ...]:
    return (
        Column("interactions", pl.Int64(), "How often the study's accounts engaged with it."),
        Column("accounts", pl.Int64(), "How many of the study's accounts did."),
        *(Column(kind, pl.Int64(), f"How many of these were {kind}.") for kind in kinds),
        Column("first", INSTANT, "Earliest of these, by created_at."),
        Column("last", INSTANT, "Latest of these."),
    )


ENGAGED_ACCOUNTS = (
    Column(
        "did", TEXT, "DID of an account that the study does not collect and that its accounts engaged with."
    ),
    *_numbers(list(_PLURALS.values())),
)
ENGAGED_POSTS = (
    Column("uri", TEXT, "AT-URI of a post that the study's accounts engaged with."),
    Column("did", TEXT, "DID of its author."),
    Column("in_study", pl.Boolean(), "Whether the study collects its author."),
    *_numbers(_OF_POSTS),
)


@dataclass(frozen=True, slots=True)
class Engaged:
    """What belongs to one range of accounts of both lists, sorted, and how many interactions name no account."""

    accounts: pl.DataFrame
    posts: pl.DataFrame
    unusable: int


def find_engaged(
    tables: StoredTables,
    own: pl.Series,
    interactions: Sequence[Interaction],
    start: datetime | None,
    end: datetime | None,
) -> Iterator[Engaged]:
    """List whom and what the rows of these tables engaged with between two instants, both inside; None is open.

    Yields the lists in lots, in order. `own` are the DIDs that the study collects. Rows without a date that can be
    believed are in no period, and an account's interactions with itself are none.
    """
    in_study = pl.col("subject").is_in(own.implode())
    for lot in did_ranges(tables.rows(SOURCES), _AT_ONCE):
        rows = _interactions(tables, interactions, start, end, lot)
        usable = rows.filter(rejection_of(pl.col("subject")).is_null())
        accounts = _counted(usable.filter(~in_study), ["subject"], list(_PLURALS.values()))
        of_posts = usable.filter(pl.col("uri").str.contains(f"/{POST}/", literal=True))
        posts = _counted(of_posts, ["uri", "subject"], _OF_POSTS).with_columns(in_study=in_study)
        yield Engaged(
            _as(ENGAGED_ACCOUNTS, accounts.rename({"subject": "did"})).sort("did"),
            _as(ENGAGED_POSTS, posts.rename({"subject": "did"})).sort("uri"),
            rows.height - usable.height,
        )


def _as(columns: Sequence[Column], rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(column.name for column in columns)


def _interactions(
    tables: StoredTables,
    interactions: Sequence[Interaction],
    start: datetime | None,
    end: datetime | None,
    lot: DidRange,
) -> pl.DataFrame:
    """Return `did, subject, uri, created_at, kind` of the interactions with a range of accounts."""
    frames, found = [], []
    for kind in interactions:
        for table, uri, subject in _WHERE[kind]:
            keys = tables.keys(table)
            if not keys:
                continue
            found += keys
            columns = ["did", subject, "created_at", "date_quality", *([uri] if uri else [])]
            rows = tables.scan(table, keys, columns).filter(
                lot.holds(subject) & (pl.col(subject) != pl.col("did")) & _in_period(start, end)
            )
            frames.append(
                rows.select(
                    "did",
                    pl.col(subject).alias("subject"),
                    (pl.col(uri) if uri else pl.lit(None, TEXT)).alias("uri"),
                    "created_at",
                    pl.lit(_PLURALS[kind]).alias("kind"),
                )
            )
    empty = pl.DataFrame(
        schema={"did": TEXT, "subject": TEXT, "uri": TEXT, "created_at": INSTANT, "kind": TEXT}
    )
    return pl.concat([empty, *tables.storage.collect(frames, found, engine="streaming")])


def _in_period(start: datetime | None, end: datetime | None) -> pl.Expr:
    inside = ~is_undated(pl.col("date_quality"))
    if start is not None:
        inside &= pl.col("created_at") >= start
    if end is not None:
        inside &= pl.col("created_at") <= end
    return inside


def _counted(rows: pl.DataFrame, by: Sequence[str], kinds: Sequence[str]) -> pl.DataFrame:
    return rows.group_by(by).agg(
        pl.len().cast(pl.Int64).alias("interactions"),
        pl.col("did").n_unique().cast(pl.Int64).alias("accounts"),
        *((pl.col("kind") == kind).sum().cast(pl.Int64).alias(kind) for kind in kinds),
        first=pl.col("created_at").min(),
        last=pl.col("created_at").max(),
    )
