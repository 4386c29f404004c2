"""Reply trees out of what is collected: `threads`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from backfill_dagster.columns import Column
from backfill_dagster.derived.build import WINDOW, Derivation
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import INSTANT, TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from backfill_dagster.derived.stored_tables import StoredTables
    from backfill_dagster.dids.did_ranges import DidRange

_SOURCES = ("posts", "replies")
# Rows of posts and replies that are looked at once; of a row, some three hundred bytes are held.
_AT_ONCE = 1_000_000
_VERSION = 1
_NODES = pl.Schema({"uri": TEXT, "did": TEXT, "created_at": INSTANT, "parent_uri": TEXT, "root_uri": TEXT})


class Threads(Derivation):
    """Trees of all windows and the undated rows; a tree stands in the window of its earliest dated record."""

    name = "threads"
    description = (
        "Threads as far as they are collected: one row for each post with replies, for each reply, and for each parent "
        "that a collected reply names and that is not collected. A thread is what names the same root; it stands whole "
        "in the time partition of its earliest record. Threads whose records all lack a believable date are left out."
    )
    columns = (
        Column("root_uri", TEXT, "AT-URI of the post that the thread began with, as its replies name it."),
        Column("uri", TEXT, "AT-URI of the post or reply."),
        Column("did", TEXT, "DID of its author, out of the AT-URI."),
        Column("collected", pl.Boolean(), "Whether it is collected; if not, only its place is known."),
        Column(
            "created_at", INSTANT, "Its true creation; null if it is not collected or has no believable date."
        ),
        Column(
            "parent_uri",
            TEXT,
            "AT-URI of what it replies to; null for a root, and for what is not collected.",
        ),
        Column(
            "depth",
            pl.Int64(),
            "Replies between it and the thread's root; null if a parent between them is not collected, or if parents "
            "name each other in a circle.",
        ),
        Column("top_uri", TEXT, "AT-URI of the highest record that its parents lead to; null in a circle."),
        Column("replies", pl.Int64(), "Collected direct replies to it in this thread."),
        Column("thread_size", pl.Int64(), "Collected records of the thread, its root included."),
        Column(
            "thread_missing",
            pl.Int64(),
            "Parents, and the root, that are named in the thread and not collected.",
        ),
    )

    key = ("root_uri", "uri")

    def __init__(self, tables: StoredTables) -> None:
        self._tables = tables
        self._ranges = did_ranges(tables.rows(_SOURCES), _AT_ONCE)
        self._identity = f"{_VERSION} {len(self._ranges)} {tables.identity(_SOURCES)}"

    def identity(self, window: str) -> str:  # noqa: ARG002  a thread may have replies in any window
        """Return what is another whenever any posts or replies are."""
        return self._identity

    def lots(self, windows: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the threads of ranges of the roots' authors, by root and URI."""
        granularity = self._tables.granularity
        starts = pl.DataFrame(
            {"_start": [granularity.start(window) for window in windows], WINDOW: list(windows)},
            schema={"_start": INSTANT, WINDOW: TEXT},
        )
        for lot, authors in enumerate(self._ranges):
            trees = grown(self._replies(authors), self._roots(authors), self._elsewhere)
            first = trees.group_by("root_uri").agg(
                _start=pl.col("created_at").min().dt.truncate(granularity.every)
            )
            rows = (
                trees.join(first, on="root_uri")
                .join(starts, on="_start")
                .sort("root_uri", "uri")
                .select(*(column.name for column in self.columns), WINDOW)
            )
            yield lot, rows

    def _replies(self, authors: DidRange) -> pl.DataFrame:
        keys = self._tables.keys("replies")
        if not keys:
            return _NODES.to_frame()
        columns = ["uri", "did", "created_at", "date_quality", "reply_parent_uri", "reply_root_uri"]
        rows = (
            self._tables.scan("replies", keys, columns)
            # A reply that names no root begins a thread of its own.
            .with_columns(root_uri=pl.coalesce("reply_root_uri", "reply_parent_uri", "uri"))
            .filter(authors.holds("root_uri", "at://"))
            .select("uri", "did", _believed(), "root_uri", parent_uri="reply_parent_uri")
            .select(_NODES.names())
        )
        return self._tables.storage.collect([rows], keys, engine="streaming")[0]

    def _roots(self, authors: DidRange) -> pl.DataFrame:
        keys = self._tables.keys("posts")
        if not keys:
            return _NODES.to_frame()
        rows = (
            self._tables.scan("posts", keys, ["uri", "did", "created_at", "date_quality"])
            .filter(authors.holds("did"))
            .select("uri", "did", _believed(), parent_uri=pl.lit(None, TEXT), root_uri=pl.col("uri"))
            .select(_NODES.names())
        )
        return self._tables.storage.collect([rows], keys, engine="streaming")[0]

    def _elsewhere(self, uris: pl.DataFrame) -> pl.DataFrame:
        """Return `uri, created_at, found` of those of these that are collected, in whatever thread."""
        keys = {table: self._tables.keys(table) for table in _SOURCES}
        frames = [
            self._tables.scan(table, found, ["uri", "created_at", "date_quality"])
            .join(uris.lazy(), on="uri", how="semi")
            .select("uri", _believed(), found=pl.lit(value=True))
            for table, found in keys.items()
            if found
        ]
        every = [key for found in keys.values() for key in found]
        empty = pl.DataFrame(schema={"uri": TEXT, "created_at": INSTANT, "found": pl.Boolean()})
        return pl.concat([empty, *self._tables.storage.collect(frames, every, engine="streaming")])


def _believed() -> pl.Expr:
    return pl.when(~is_undated(pl.col("date_quality"))).then("created_at").alias("created_at")


def grown(
    replies: pl.DataFrame, posts: pl.DataFrame, elsewhere: Callable[[pl.DataFrame], pl.DataFrame]
) -> pl.DataFrame:
    """Return the trees of these replies and of those posts that are their roots.

    Both have `uri, did, created_at, parent_uri, root_uri`. `elsewhere` finds `uri, created_at, found` of what is
    collected, but stands in another thread. The result has the columns of `Threads`.
    """
    nodes = pl.concat([replies, posts.join(replies, on="root_uri", how="semi")]).with_columns(
        collected=pl.lit(value=True)
    )
    others = _named_only(nodes)
    others = others.join(
        elsewhere(others.select("uri").unique()), on="uri", how="left", maintain_order="left"
    )
    others = others.with_columns(collected=pl.col("found").fill_null(value=False))
    nodes = pl.concat([nodes, others.select(nodes.columns)]).sort("root_uri", "uri").with_row_index("node")
    # Only within a thread: a parent that stands in another thread is missing in this one.
    parents = nodes.select("root_uri", parent_uri="uri", parent="node")
    nodes = nodes.join(parents, on=["root_uri", "parent_uri"], how="left", maintain_order="left")
    steps, top = climbed(nodes["parent"].cast(pl.Int64).fill_null(-1).to_numpy())
    uris = nodes["uri"]
    tops = pl.Series(np.where(top < 0, 0, top))
    nodes = nodes.with_columns(
        top_uri=pl.when(pl.Series(top >= 0)).then(uris.gather(tops) if nodes.height else uris),
        steps=pl.Series(steps),
    )
    return nodes.with_columns(
        depth=pl.when(pl.col("top_uri") == pl.col("root_uri")).then("steps"),
    ).pipe(_with_counts)


def _named_only(nodes: pl.DataFrame) -> pl.DataFrame:
    """Return a node for each parent or root that is named in a thread and stands in none, or in another one."""
    named = pl.concat(
        [
            nodes.select("root_uri", uri="parent_uri").drop_nulls(),
            nodes.select("root_uri", uri="root_uri"),
        ]
    ).unique()
    return named.join(nodes, on=["root_uri", "uri"], how="anti").with_columns(
        did=pl.col("uri").str.extract("^at://([^/]+)"), parent_uri=pl.lit(None, TEXT)
    )


def _with_counts(nodes: pl.DataFrame) -> pl.DataFrame:
    answered = (
        nodes.filter(pl.col("parent").is_not_null())
        .group_by(node="parent")
        .agg(replies=pl.len().cast(pl.Int64))
    )
    sizes = nodes.group_by("root_uri").agg(
        thread_size=pl.col("collected").sum().cast(pl.Int64),
        thread_missing=(~pl.col("collected")).sum().cast(pl.Int64),
    )
    return (
        nodes.join(answered, on="node", how="left")
        .join(sizes, on="root_uri")
        .with_columns(pl.col("replies").fill_null(0))
    )


def climbed(parents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many steps it is from each node to the top that its parents lead to, and that top; -1 in a circle.

    `parents` are positions in it, -1 at a top. Each round doubles the way that is known, so that a chain of a million
    replies takes twenty.
    """
    own = np.arange(len(parents))
    ahead = np.where(parents < 0, own, parents)
    steps = (parents >= 0).astype(np.int64)
    for _ in range(max(1, len(parents)).bit_length()):
        steps += steps[ahead]
        ahead = ahead[ahead]
    at_top = parents[ahead] < 0 if len(parents) else np.zeros(0, dtype=bool)
    return np.where(at_top, steps, -1), np.where(at_top, ahead, -1)
