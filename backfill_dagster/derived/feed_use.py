"""The collected posts that feeds showed: `posts_used_in_feeds`, out of a table of what feeds showed when."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.derived.build import WINDOW, Derivation
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.records.tables import INSTANT, TABLE_BY_NAME, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    from backfill_dagster.derived.stored_tables import StoredTables
    from backfill_dagster.dids.did_ranges import DidRange
    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.storage import StudyStorage

SHOWN_FOLDER = "feeds"
SHOWN_COLUMNS = (
    Column("uri", TEXT, "AT-URI of a post that a feed showed.", required=True),
    Column("day", pl.Date(), "Day in UTC on which it was shown.", required=True),
    Column("first_shown_at", INSTANT, "When it was shown first on that day.", required=True),
    Column("times", pl.Int64(), "How often it was shown on that day.", required=True),
)
SHOWN_SCHEMA = schema_of(SHOWN_COLUMNS)
_POST_URI = r"^at://did:[a-z]+:[a-zA-Z0-9._:%-]+/app\.bsky\.feed\.post/[a-zA-Z0-9._~:-]{1,512}$"
_SOURCES = ("posts", "replies")
# Rows of what feeds showed, and of posts, that are looked at once; of a post, some two kilobytes are held.
_AT_ONCE = 500_000
_SHOWN_AT_ONCE = 4_000_000
_VERSION = 1
_FIRST_KEY = f"{SHOWN_FOLDER}/part-00000.parquet"
_STAMP, _COUNTS = "stamp", "counts"


def shown_rows(batch: pl.DataFrame) -> pl.DataFrame:
    """Return what a batch of a feeds' table says (`uri, time` as text), as `uri, shown_at, reason`.

    `reason` is null, or says why a row says nothing: `no_post` for what is no AT-URI of a post, `no_time`.
    """
    time = pl.col("time").str.strip_chars()
    # With a `T` or a blank, to the minute or finer; an offset of hours alone is one of whole hours.
    written = (
        time.str.replace(r"^(\d{4}-\d{2}-\d{2}) ", "${1}T")
        .str.replace(r"^([^T]+T\d{2}:\d{2})([Zz+-]|$)", "${1}:00${2}")
        .str.replace(r"(T.*[+-]\d{2})$", "${1}:00")
    )
    local = written.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    day = time.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    instant = pl.coalesce(
        written.str.to_datetime("%+", time_unit="us", time_zone="UTC", strict=False),
        # Without a zone it is taken for UTC.
        local.dt.replace_time_zone("UTC"),
        day.dt.replace_time_zone("UTC"),
    )
    uri = pl.col("uri").str.strip_chars()
    return batch.select(
        uri=uri,
        shown_at=instant,
        reason=pl.when(~uri.str.contains(_POST_URI).fill_null(value=False))
        .then(pl.lit("no_post"))
        .when(instant.is_null())
        .then(pl.lit("no_time")),
    )


def stored_shown(storage: StudyStorage) -> tuple[str, Counter[str]] | None:
    """Return the stamp with which what feeds showed was stored, and its counts; None if nothing is."""
    if not storage.exists(_FIRST_KEY):
        return None
    told = storage.metadata(_FIRST_KEY)
    return told[_STAMP], Counter(json.loads(told[_COUNTS]))


def store_shown(storage: StudyStorage, batches: Iterable[pl.DataFrame], stamp: str) -> Counter[str]:
    """Store what feeds showed, out of batches of `uri, time` as text, by post and day; replaces what is stored.

    Returns how many rows there were (`rows`), and how many of them said nothing, by reason. `stamp` tells this table of
    feeds from others.
    """
    counts: Counter[str] = Counter()
    with storage.scratch() as scratch:
        for number, batch in enumerate(batches):
            rows = shown_rows(batch)
            counts["rows"] += rows.height
            counts.update(dict(rows.drop_nulls("reason").group_by("reason").len().iter_rows()))
            kept = rows.filter(pl.col("reason").is_null()).drop("reason")
            kept.write_parquet(scratch / f"{number:08d}.parquet")
        read = pl.scan_parquet(sorted(scratch.glob("*.parquet")), glob=False) if counts["rows"] else None
        ranges = did_ranges(counts["rows"], _SHOWN_AT_ONCE)
        written = [f"{SHOWN_FOLDER}/part-{number:05d}.parquet" for number in range(len(ranges))]
        # The first file, which has the stamp, is the commit.
        storage.remove(_FIRST_KEY)
        for key, authors in reversed(list(zip(written, ranges, strict=True))):
            shown = SHOWN_SCHEMA.to_frame() if read is None else _by_day(read, authors)
            storage.write(key, shown, {_STAMP: stamp, _COUNTS: json.dumps(counts, sort_keys=True)})
    for key in set(storage.keys(SHOWN_FOLDER)) - set(written):
        storage.remove(key)
    return counts


def _by_day(rows: pl.LazyFrame, authors: DidRange) -> pl.DataFrame:
    return (
        rows.filter(authors.holds("uri", "at://"))
        .group_by("uri", day=pl.col("shown_at").dt.date())
        .agg(first_shown_at=pl.col("shown_at").min(), times=pl.len().cast(pl.Int64))
        .select(SHOWN_SCHEMA.names())
        .collect(engine="streaming")
        .sort("uri", "day")
    )


def purge_shown(storage: StudyStorage, tombstones: Tombstones) -> int:
    """Take out of what feeds showed what the study has purged; return how many rows that were."""
    removed = 0
    for key in storage.keys(SHOWN_FOLDER):
        rows, told = storage.read(key), storage.metadata(key)
        kept = without_purged(rows, tombstones)
        if kept.height < rows.height:
            storage.write(key, kept, {name: told[name] for name in (_STAMP, _COUNTS)})
            removed += rows.height - kept.height
    return removed


def without_purged(rows: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Return the rows whose `uri` is neither a purged account's nor a purged record."""
    if not tombstones:
        return rows
    authors = rows.select(pl.col("uri").str.extract("^at://([^/]+)/"))["uri"]
    purged = set(tombstones.held_among(authors))
    records = {did for did in authors.unique().drop_nulls() if tombstones.holds_records_of(did)}
    stays = [
        author not in purged and not (author in records and tombstones.holds_uri(uri))
        for author, uri in zip(authors, rows["uri"], strict=True)
    ]
    return rows.filter(pl.Series(stays, dtype=pl.Boolean))


@dataclass(frozen=True, slots=True)
class Days:
    """The days that count: within the study's windows, and at most so many after a post's creation."""

    look_back: int
    first: date
    end: date  # the first day after

    def counts(self) -> pl.Expr:
        """Tell which rows with `day` and `created_at` count; a day before creation may be another zone's, no more."""
        day, born = pl.col("day"), pl.col("created_at").dt.date()
        in_windows = (day >= self.first) & (day < self.end)
        return (
            in_windows
            & (day >= born - pl.duration(days=1))
            & (day <= born + pl.duration(days=self.look_back))
        )


class PostsUsedInFeeds(Derivation):
    """Joins what feeds showed with the posts and replies of all windows, and keeps each post's earliest day."""

    name = "posts_used_in_feeds"
    description = (
        "Collected posts and replies that feeds showed, each once, on the earliest day (UTC) on which one did. A post "
        "counts on a day if it was at most so old as the study's look-back allows; one without a believable date does "
        "not."
    )
    columns = (
        Column("used_on", pl.Date(), "Earliest day on which it was shown, not being too old."),
        Column("first_shown_at", INSTANT, "When it was first shown on that day, as the table of feeds says."),
        Column("days_shown", pl.Int64(), "Days on which it was shown, not being too old."),
        Column("times_shown", pl.Int64(), "Rows of the table of feeds with it on those days."),
        *TABLE_BY_NAME["posts"].columns,
    )

    key = ("uri",)

    def __init__(self, tables: StoredTables, look_back_days: int, windows: Sequence[str]) -> None:
        self._tables = tables
        starts = [start for key in (windows[0], windows[-1]) if (start := tables.granularity.start(key))]
        end = tables.granularity.after(starts[-1]).date()
        self._days = Days(look_back_days, starts[0].date(), end)
        self._shown = tables.storage.keys(SHOWN_FOLDER)
        told = stored_shown(tables.storage)
        rows = told[1]["rows"] if told else 0
        self._ranges = did_ranges(max(tables.rows(_SOURCES), rows * _AT_ONCE // _SHOWN_AT_ONCE), _AT_ONCE)
        shown = [tables.storage.sha256(key) for key in self._shown]
        self._identity = f"{_VERSION} {len(self._ranges)} {self._days} {shown} {tables.identity(_SOURCES)}"

    def identity(self, window: str) -> str:  # noqa: ARG002  a post may be shown long after its window
        """Return what is another whenever the feeds, posts or replies are."""
        return self._identity

    def lots(self, windows: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the used posts of ranges of authors, by URI."""
        granularity = self._tables.granularity
        starts = pl.DataFrame(
            {"_start": [granularity.start(window) for window in windows], WINDOW: list(windows)},
            schema={"_start": INSTANT, WINDOW: TEXT},
        )
        start = pl.col("used_on").cast(INSTANT).dt.truncate(granularity.every)
        for lot, authors in enumerate(self._ranges):
            shown = self._shown_posts(authors)
            used = self._used(shown, authors).with_columns(_start=start).join(starts, on="_start")
            yield lot, used.sort("uri").select(*(column.name for column in self.columns), WINDOW)

    def counts(self) -> dict[str, int]:
        """Return how many posts the feeds showed, and how many of them are not collected, undated, or used.

        What is left was `on_no_day` of the study's windows shown at an age that counts.
        """
        counts: Counter[str] = Counter()
        for authors in self._ranges:
            shown = self._shown_posts(authors)
            posts = self._posts(shown, authors, ["uri", "created_at", "date_quality"])
            used = _qualified(shown, posts, self._days).height
            dated = posts.drop_nulls("created_at").height
            every = shown["uri"].n_unique()
            counts.update(
                posts_shown=every,
                not_collected=every - posts.height,
                undated=posts.height - dated,
                on_no_day=dated - used,
                used=used,
            )
        return dict(counts)

    def _shown_posts(self, authors: DidRange) -> pl.DataFrame:
        rows = self._tables.storage.scan(self._shown, SHOWN_SCHEMA).filter(authors.holds("uri", "at://"))
        return self._tables.storage.collect([rows], self._shown)[0]

    def _used(self, shown: pl.DataFrame, authors: DidRange) -> pl.DataFrame:
        posts = self._posts(shown, authors, TABLE_BY_NAME["posts"].schema.names())
        return posts.join(_qualified(shown, posts, self._days), on="uri")

    def _posts(self, shown: pl.DataFrame, authors: DidRange, columns: Sequence[str]) -> pl.DataFrame:
        """Return these columns of the collected posts and replies that were shown; of the undated no created_at."""
        wanted = shown.lazy().select("uri").unique()
        frames, found = [], []
        for table in _SOURCES:
            dated = set(self._tables.keys(table)) - set(self._tables.undated_keys(table))
            for keys, is_dated in ((sorted(dated), True), (self._tables.undated_keys(table), False)):
                found += keys
                rows = self._tables.scan(table, keys, TABLE_BY_NAME[table].schema.names())
                rows = rows.filter(authors.holds("did")).join(wanted, on="uri", how="semi")
                created_at = pl.col("created_at") if is_dated else pl.lit(None, INSTANT).alias("created_at")
                frames.append(rows.with_columns(created_at).select(columns))
        empty = TABLE_BY_NAME["posts"].schema.to_frame().select(columns)
        return pl.concat([empty, *self._tables.storage.collect(frames, found, engine="streaming")])


def _qualified(shown: pl.DataFrame, posts: pl.DataFrame, days: Days) -> pl.DataFrame:
    """Return `uri, used_on, first_shown_at, days_shown, times_shown` of the posts shown on days that count."""
    return (
        shown.join(posts.select("uri", "created_at").drop_nulls(), on="uri")
        .filter(days.counts())
        .sort("uri", "day")
        .group_by("uri", maintain_order=True)
        .agg(
            used_on=pl.col("day").first(),
            first_shown_at=pl.col("first_shown_at").first(),
            days_shown=pl.len().cast(pl.Int64),
            times_shown=pl.col("times").sum(),
        )
    )
