"""Which like, repost, follow or block is its account's first about its subject: `first_for_subject`.

Repeats are rare, and to find that there are none is cheap: by a number that stands for account and subject. Only rows
that share one with others are looked at closely. An account whose records fill more than one file is settled in each of
them first, and then over all: of what is first in its file, only the first of all remains so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.purge.mentions import MASKED_DID
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import TABLE_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backfill_dagster.storage import StudyStorage

# The column that tells the subject, of each table in which one can be repeated.
SUBJECT_COLUMNS = {
    "likes": "subject_uri",
    "reposts": "subject_uri",
    "follows": "subject_did",
    "blocks": "subject_did",
}
# Pairs of account and subject that are looked at together over all files.
_PAIRS_AT_ONCE = 2**18

_FIRST = pl.col("first_for_subject")


def mark_firsts(rows: pl.DataFrame, table: str) -> pl.DataFrame:
    """Fill in `first_for_subject` in rows of a table, which are all that is kept of their accounts in a file."""
    if table not in SUBJECT_COLUMNS or rows.is_empty():
        return rows
    subject = pl.col(SUBJECT_COLUMNS[table])
    known = subject.is_not_null()
    alike = rows.select(known & _pair(subject).is_duplicated()).to_series().arg_true()
    rows = rows.with_columns(first_for_subject=pl.when(known).then(statement=True))
    if alike.is_empty():
        return rows
    first = rows["first_for_subject"].scatter(alike, _are_first(rows[alike], subject))
    return rows.with_columns(first_for_subject=first)


def settle_over_files(
    storage: StudyStorage, table: str, keys: Sequence[str], dids: Collection[str]
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield those of these files (key, rows) that must be other than they are, for accounts with rows in several.

    Holds eight bytes for each row of these accounts, and one file at a time.
    """
    subject = pl.col(SUBJECT_COLUMNS[table])
    firsts = pl.concat(
        storage.scan([key], TABLE_BY_NAME[table].schema)
        .with_row_index("row")
        # Those of masked subjects can be null, and still stand beside one that is alone in its file.
        .filter(pl.col("did").is_in(list(dids)), subject.is_not_null(), _FIRST.fill_null(value=True))
        .select(
            *(_FIRST, "did", subject, "created_at", "date_quality", "rkey", "row"),
            file=pl.lit(number),
            pair=_pair(subject),
        )
        for number, key in enumerate(keys)
    )
    [pairs] = storage.collect([firsts.select("pair")], keys, engine="streaming")
    repeated = pairs.filter(pl.col("pair").is_duplicated())["pair"].unique().sort()
    wrong: list[pl.DataFrame] = []
    for start in range(0, len(repeated), _PAIRS_AT_ONCE):
        some = repeated.slice(start, _PAIRS_AT_ONCE)
        [rows] = storage.collect([firsts.filter(pl.col("pair").is_in(some.implode()))], keys)
        settled = rows.select("file", "row", _FIRST, settled=_are_first(rows, subject))
        wrong.append(settled.filter(_FIRST.ne_missing(pl.col("settled"))))
    by_file = pl.concat(wrong).sort("file", "row").partition_by("file", as_dict=True) if wrong else {}
    for (number,), rows in by_file.items():
        stored = storage.read(keys[number])
        first = stored["first_for_subject"].scatter(rows["row"], rows["settled"])
        yield keys[number], stored.with_columns(first_for_subject=first)


def _pair(subject: pl.Expr) -> pl.Expr:
    """Return what stands for a row's account and subject, as far as 64 bits can."""
    return pl.col("did").hash(seed=0) ^ subject.hash(seed=1)


def _are_first(rows: pl.DataFrame, subject: pl.Expr) -> pl.Series:
    """Tell of each row whether it is its account's first about its subject; null where that cannot be told."""
    pair = pl.struct("did", subject)
    believed = pl.when(~is_undated(pl.col("date_quality"))).then("created_at")
    cannot_be_told = subject.str.contains(MASKED_DID) & pair.is_duplicated()
    return (
        rows.lazy()
        .with_row_index("place")
        .sort(believed, "rkey", nulls_last=True)
        .select("place", first=pl.when(~cannot_be_told).then(pair.is_first_distinct()))
        .sort("place")
        .collect(engine="in-memory")["first"]
    )
