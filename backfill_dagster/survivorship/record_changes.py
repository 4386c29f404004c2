"""The table of record changes: what appeared, changed and went between an account's snapshots. No content is in it.

A row is a version of a record, and one time that it stood there without a gap. Versions that stand in all of an
account's snapshots have no row: they are most of all. What a server does between two snapshots is not seen: a record
that is made and deleted between them, or deleted and made again, or changed and changed back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.repos.cid import cid_text, is_repo_cid
from backfill_dagster.survivorship.chains import CHAIN_SCHEMA, is_another
from backfill_dagster.survivorship.comparison import EVENTS_SCHEMA, comparison_key
from backfill_dagster.survivorship.pack_contents import RECORD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backfill_dagster.storage import StudyStorage


class Ending(ClosedSet):
    """What became of a version of a record."""

    STANDS = "stands", "It is in the last of the account's snapshots that can be compared."
    DELETED = "deleted", "A later snapshot has no record of its key."
    CHANGED = "changed", "A later snapshot has another version under its key."


_INSTANT = pl.Datetime("us", "UTC")
RECORD_CHANGE_COLUMNS = (
    Column("did", pl.String(), "DID of the account whose repository held the record.", required=True),
    Column("collection", pl.String(), "Collection of the record.", required=True),
    Column("rkey", pl.String(), "Key of the record within its collection.", required=True),
    Column(
        "cid",
        pl.String(),
        "CID (base32 text) of this version of the record; null for one that is not of the form that repositories use.",
    ),
    Column(
        "not_seen_at",
        _INSTANT,
        "When a snapshot was fetched that did not have it yet, the one before `first_seen`; null if it is in the "
        "account's first snapshot.",
    ),
    Column("first_seen", _INSTANT, "When the first snapshot that has it was fetched.", required=True),
    Column("last_seen", _INSTANT, "When the last snapshot that has it was fetched.", required=True),
    Column("ended", pl.String(), "What became of it.", required=True, words=(Ending,)),
    Column(
        "gone_between",
        pl.Struct({"from": _INSTANT, "to": _INSTANT}),
        "Between when it went: `from` the last time that the account was known to be at a revision with it, which can "
        "be later than `last_seen`, `to` the fetch of the first snapshot without it; null if it stands.",
    ),
)
RECORD_CHANGES_SCHEMA = schema_of(RECORD_CHANGE_COLUMNS)
RECORD_CHANGES_KEY = ("did", "collection", "rkey", "first_seen")
# What a chain tells of when a version came or went.
_TIMES = ("fetched_at", "first_at", "last_at", "before_at", "before_confirmed_at")
DATED_EVENTS_SCHEMA = pl.Schema({**EVENTS_SCHEMA, **{name: CHAIN_SCHEMA[name] for name in _TIMES}})
# Events that are read at once, if those of a pack are no more; some 200 bytes each.
_EVENTS_AT_ONCE = 250_000
_VERSION_OF_RECORD = (*RECORD, "cid")


def read_events(storage: StudyStorage, chains: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the events of the comparisons of these snapshots (DATED_EVENTS_SCHEMA), some packs' after the other's.

    In no order within. `chains` are snapshots (CHAIN_SCHEMA) that follow others, all those of some packs at a time.
    Raises StorageError.
    """
    for times in chains:
        packs = times.select("pds_host", "pack").unique().sort("pds_host", "pack").rows()
        for some in _few_events(storage, packs):
            keys = {comparison_key(*pack): "\n".join(pack) for pack in some}
            [found] = storage.collect([storage.scan_named(keys, EVENTS_SCHEMA, "of")], keys)
            dated = times.select("did", *_TIMES, of=pl.concat_str("pds_host", pl.lit("\n"), "pack"))
            yield found.join(dated, on=["did", "of"]).select(DATED_EVENTS_SCHEMA.names())


def count_events(storage: StudyStorage, packs: Iterable[tuple[str, str]]) -> int:
    """Count the events of the comparisons of these packs; raises StorageError."""
    return sum(storage.rows(comparison_key(*pack)) for pack in packs)


def _few_events(storage: StudyStorage, packs: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Cut packs into runs whose comparisons together have no more events than are read at once."""
    run: list[tuple[str, str]] = []
    events = 0
    for pack in packs:
        own = count_events(storage, [pack])
        if run and events + own > _EVENTS_AT_ONCE:
            yield run
            run, events = [], 0
        run.append(pack)
        events += own
    if run:
        yield run


def record_changes(events: pl.DataFrame) -> pl.DataFrame:
    """Make the table (RECORD_CHANGES_SCHEMA) of all events of some accounts (DATED_EVENTS_SCHEMA)."""
    # A version's events alternate: it comes, and goes, and comes again. One that goes first was there from the first.
    ordered = events.sort(*_VERSION_OF_RECORD, "fetched_at")
    is_first = is_another(*_VERSION_OF_RECORD)
    is_last = is_first.shift(-1, fill_value=True)
    marked = ordered.with_columns(
        came_at=pl.when(~is_first).then(pl.col("fetched_at").shift(1)),
        came_after=pl.when(~is_first).then(pl.col("before_at").shift(1)),
        goes=~is_last & pl.col("stood_before").shift(-1, fill_value=False),
    )
    ended = marked.filter("stood_before").select(
        *RECORD,
        "cid",
        not_seen_at="came_after",
        first_seen=pl.coalesce("came_at", "first_at"),
        last_seen="before_at",
        ended=pl.when("changed").then(pl.lit(Ending.CHANGED.value)).otherwise(pl.lit(Ending.DELETED.value)),
        gone_between=pl.struct(pl.col("before_confirmed_at").alias("from"), pl.col("fetched_at").alias("to")),
    )
    standing = marked.filter(~pl.col("stood_before") & ~pl.col("goes")).select(
        *RECORD,
        "cid",
        not_seen_at="before_at",
        first_seen="fetched_at",
        last_seen="last_at",
        ended=pl.lit(Ending.STANDS.value),
        gone_between=pl.lit(None, RECORD_CHANGES_SCHEMA["gone_between"]),
    )
    rows = pl.concat([ended, standing])
    texts = {cid: cid_text(cid) if is_repo_cid(cid) else None for cid in rows["cid"].unique()}
    return (
        rows.with_columns(cid=pl.Series([texts[cid] for cid in rows["cid"]], dtype=pl.String))
        .select(RECORD_CHANGES_SCHEMA.names())
        .cast(RECORD_CHANGES_SCHEMA)
        .sort(RECORD_CHANGES_KEY)
    )


def misfits(changes: pl.DataFrame) -> int:
    """Count the rows whose times are not in the order that they must be in."""
    gone = pl.col("gone_between").struct
    in_order = (
        (pl.col("not_seen_at").fill_null(pl.col("first_seen")) <= pl.col("first_seen"))
        & (pl.col("first_seen") <= pl.col("last_seen"))
        & (pl.col("last_seen") <= gone.field("from").fill_null(pl.col("last_seen")))
        & (gone.field("from") <= gone.field("to")).fill_null(value=True)
        & (pl.col("gone_between").is_null() == (pl.col("ended") == Ending.STANDS.value))
    )
    return changes.filter(~in_order).height


def repeated(changes: pl.DataFrame) -> int:
    """Count the rows that stand twice."""
    return (
        changes.select(RECORD_CHANGES_KEY)
        .sort(RECORD_CHANGES_KEY)
        .filter(~is_another(*RECORD_CHANGES_KEY))
        .height
    )
