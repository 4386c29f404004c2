"""What each post of the study received from the study's accounts: `engagement`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column
from backfill_dagster.derived.build import WINDOW, Derivation
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.records.tables import INSTANT, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.derived.stored_tables import StoredTables
    from backfill_dagster.dids.did_ranges import DidRange

_TARGETS = ("posts", "replies")
# What is received, and where it stands: the table, the column with the URI and the one with its account.
RECEIVED = {
    "likes": (("likes", "subject_uri", "subject_did"),),
    "reposts": (("reposts", "subject_uri", "subject_did"),),
    "replies": (("replies", "reply_parent_uri", "reply_parent_did"),),
    "quotes": (("posts", "quoted_uri", "quoted_did"), ("replies", "quoted_uri", "quoted_did")),
}
_SOURCES = ("posts", "replies", "likes", "reposts")
# Rows of the tables that are counted at once; of a row, some two hundred bytes are held.
_AT_ONCE = 2_000_000
_VERSION = 1


class Engagement(Derivation):
    """Counts what all windows, and the undated rows, hold about the posts of a window."""

    name = "engagement"
    description = (
        "What every post and reply received from the accounts of the study: likes, reposts, direct replies and quotes, "
        "whenever they were made. What others did with it is not collected, and so not counted."
    )
    columns = (
        Column("uri", TEXT, "AT-URI of the post or reply."),
        Column("did", TEXT, "DID of its author."),
        Column("record_type", TEXT, "post or reply."),
        Column("created_at", INSTANT, "Its true creation, by which it stands in its time partition."),
        *(Column(f"{kind}_received", pl.Int64(), f"Collected {kind} of it.") for kind in RECEIVED),
        *(Column(f"{kind}_accounts", pl.Int64(), f"Accounts that these {kind} are of.") for kind in RECEIVED),
        Column("by_author", pl.Int64(), "How many of all of these are its author's own."),
    )

    key = ("uri",)
    covers = (pl.len(), _TARGETS)

    def __init__(self, tables: StoredTables) -> None:
        self._tables = tables
        self._ranges = did_ranges(tables.rows(_SOURCES), _AT_ONCE)
        self._identity = f"{_VERSION} {len(self._ranges)} {tables.identity(_SOURCES)}"

    def identity(self, window: str) -> str:  # noqa: ARG002  what a post receives may stand in any window
        """Return what is another whenever any posts, replies, likes or reposts are."""
        return self._identity

    def lots(self, windows: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the posts of ranges of authors, by URI."""
        for lot, authors in enumerate(self._ranges):
            posts = pl.concat(self._posts(window, authors) for window in windows)
            for kind in RECEIVED:
                posts = posts.join(self._received(kind, authors, posts), on="uri", how="left")
            numbers = [name for name in posts.columns if name.startswith("_own_")]
            posts = posts.with_columns(pl.col(pl.Int64).fill_null(0))
            rows = posts.sort("uri").select(
                *(column.name for column in self.columns if column.name != "by_author"),
                pl.sum_horizontal(numbers).alias("by_author"),
                WINDOW,
            )
            yield lot, rows

    def _posts(self, window: str, authors: DidRange) -> pl.DataFrame:
        frames, found = [], []
        for table in _TARGETS:
            keys = self._tables.keys(table, [window])
            found += keys
            if keys:
                columns = ["uri", "did", "record_type", "created_at"]
                frames.append(self._tables.scan(table, keys, columns).filter(authors.holds("did")))
        empty = pl.DataFrame(schema={"uri": TEXT, "did": TEXT, "record_type": TEXT, "created_at": INSTANT})
        return pl.concat([empty, *self._tables.storage.collect(frames, found)]).with_columns(
            pl.lit(window).alias(WINDOW)
        )

    def _received(self, kind: str, authors: DidRange, posts: pl.DataFrame) -> pl.DataFrame:
        frames, found = [], []
        for table, uri, did in RECEIVED[kind]:
            keys = self._tables.keys(table)
            found += keys
            if keys:
                rows = self._tables.scan(table, keys, ["did", uri, did]).filter(authors.holds(did))
                frames.append(rows.select("did", uri=uri, author=did))
        empty = pl.DataFrame(schema={"did": TEXT, "uri": TEXT, "author": TEXT})
        wanted = posts.lazy().select("uri")
        kept = [rows.join(wanted, on="uri", how="semi") for rows in frames]
        received = pl.concat([empty, *self._tables.storage.collect(kept, found, engine="streaming")])
        return received.group_by("uri").agg(
            pl.len().cast(pl.Int64).alias(f"{kind}_received"),
            pl.col("did").n_unique().cast(pl.Int64).alias(f"{kind}_accounts"),
            (pl.col("did") == pl.col("author")).sum().cast(pl.Int64).alias(f"_own_{kind}"),
        )
