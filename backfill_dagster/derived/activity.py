"""What each account of the study did on each day: `study_user_activity`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column
from backfill_dagster.derived.build import WINDOW, Derivation
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.records.tables import INSTANT, TEXT, TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.derived.stored_tables import StoredTables
    from backfill_dagster.dids.did_ranges import DidRange

_COUNTED = ("posts", "replies", "likes", "reposts", "follows", "blocks")
_WRITTEN = ("posts", "replies")
# Rows of the tables that are counted at once; of a row, some fifty bytes are held.
_AT_ONCE = 4_000_000
# Raised whenever the same records would make other rows.
_VERSION = 1


class StudyUserActivity(Derivation):
    """Counts of what stands in the tables of the same window; days are those of UTC."""

    name = "study_user_activity"
    description = (
        "What each account did on each day (UTC) on which it did anything: records by type, words and languages of "
        "its posts and replies, first and last time. Records without a date that can be believed are on no day."
    )
    columns = (
        Column("did", TEXT, "DID of the account."),
        Column("day", pl.Date(), "Day of the records' true creation, in UTC."),
        *(Column(table, pl.Int64(), f"Rows of the table `{table}` on that day.") for table in _COUNTED),
        Column("records", pl.Int64(), "Sum of these."),
        Column("first_created_at", INSTANT, "Earliest created_at of the day."),
        Column("last_created_at", INSTANT, "Latest created_at of the day."),
        Column("words", pl.Int64(), "Words of posts and replies: runs of characters between white space."),
        Column("languages", TEXTS, "Language tags of posts and replies as written, sorted, each once."),
    )

    key = ("did", "day")
    covers = (pl.col("records").sum(), _COUNTED)

    def __init__(self, tables: StoredTables, windows: Sequence[str]) -> None:
        self._tables = tables
        self._ranges = did_ranges(
            max((tables.rows(_COUNTED, [window]) for window in windows), default=0), _AT_ONCE
        )

    def identity(self, window: str) -> str:
        """Return what is another whenever the records of the window are."""
        return f"{_VERSION} {len(self._ranges)} {self._tables.identity(_COUNTED, [window])}"

    def lots(self, windows: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the days of ranges of accounts in each window, by account and day."""
        for lot, accounts in enumerate(self._ranges):
            for window in windows:
                yield lot, self._count(window, accounts)

    def _count(self, window: str, accounts: DidRange) -> pl.DataFrame:
        keys = {table: self._tables.keys(table, [window]) for table in _COUNTED}
        frames = [self._of_table(table, found, accounts) for table, found in keys.items() if found]
        if not frames:
            return self._finished(pl.LazyFrame(schema=_ROWS), window).collect()
        found = [key for some in keys.values() for key in some]
        rows = pl.concat(self._tables.storage.collect(frames, found, engine="streaming"))
        return self._finished(rows.lazy(), window).collect()

    def _of_table(self, table: str, keys: list[str], accounts: DidRange) -> pl.LazyFrame:
        written = table in _WRITTEN
        columns = ["did", "created_at", *(["text", "langs"] if written else [])]
        words = pl.col("text").str.count_matches(r"\S+") if written else pl.lit(0)
        return (
            self._tables.scan(table, keys, columns)
            .filter(accounts.holds("did"))
            .select(
                "did",
                "created_at",
                words.fill_null(0).cast(pl.Int64).alias("words"),
                pl.col("langs") if written else pl.lit(None, TEXTS).alias("langs"),
                day=pl.col("created_at").dt.date(),
            )
            .group_by("did", "day")
            .agg(
                records=pl.len().cast(pl.Int64),
                first_created_at=pl.col("created_at").min(),
                last_created_at=pl.col("created_at").max(),
                words=pl.col("words").sum(),
                languages=pl.col("langs").list.explode(keep_nulls=False, empty_as_null=False).unique(),
            )
            .select(pl.lit(table).alias("table"), *_ROWS.names()[1:])
        )

    def _finished(self, rows: pl.LazyFrame, window: str) -> pl.LazyFrame:
        counts = [pl.col("records").filter(pl.col("table") == table).sum().alias(table) for table in _COUNTED]
        return (
            rows.group_by("did", "day")
            .agg(
                *counts,
                pl.col("records").sum(),
                pl.col("first_created_at").min(),
                pl.col("last_created_at").max(),
                pl.col("words").sum(),
                pl.col("languages").list.explode(keep_nulls=False, empty_as_null=False).unique().sort(),
            )
            .sort("did", "day")
            .select(*(column.name for column in self.columns), pl.lit(window).alias(WINDOW))
        )


_ROWS = pl.Schema(
    {
        "table": TEXT,
        "did": TEXT,
        "day": pl.Date(),
        "records": pl.Int64(),
        "first_created_at": INSTANT,
        "last_created_at": INSTANT,
        "words": pl.Int64(),
        "languages": TEXTS,
    }
)
