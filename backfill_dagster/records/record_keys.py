"""Keys of records: whether they are usable, and the time in those that are TIDs."""

import polars as pl

from backfill_dagster.records import syntax

# 11 of a TID's 13 characters hold its time and nothing else.
_TIME_CHARACTERS = 11
_NO_TID = "2222222222222"


def is_collection(collection: pl.Expr) -> pl.Expr:
    """Tell which texts are NSIDs; null is none."""
    matches = collection.str.contains(syntax.whole(syntax.NSID))
    return (matches & (collection.str.len_bytes() <= syntax.MAX_NSID_BYTES)).fill_null(value=False)


def is_record_key(rkey: pl.Expr) -> pl.Expr:
    """Tell which texts are record keys: 1-512 of `A-Za-z0-9.-_:~`, not `.` or `..`; null is none."""
    return rkey.str.contains(syntax.whole(syntax.RECORD_KEY)).fill_null(value=False)


def tid_times(rkeys: pl.Series) -> pl.Series:
    """Read the time in TIDs as datetime[us, UTC]; null for a key that is no TID.

    A TID is a number in base32-sortable (digits `2-7a-z`): microseconds since 1970, then 10 bits of clock id.
    """
    is_tid = rkeys.str.contains(syntax.whole(syntax.TID)).fill_null(value=False)
    # Thirteen bytes for every row: what is no TID is replaced by one first.
    texts = pl.select(pl.when(is_tid).then(rkeys).otherwise(pl.lit(_NO_TID))).to_series()
    characters = texts.cast(pl.Binary).bin.reinterpret(dtype=pl.Array(pl.UInt8, len(_NO_TID)))
    microseconds: pl.Expr = pl.lit(0, pl.Int64)
    for place in range(_TIME_CHARACTERS):
        character = pl.col("characters").arr.get(place).cast(pl.Int64)
        digit = character - pl.when(character >= ord("a")).then(ord("a") - 6).otherwise(ord("2"))
        microseconds = microseconds * 32 + digit
    time = pl.when(is_tid).then(microseconds.cast(pl.Datetime("us", "UTC")))
    return pl.DataFrame({"characters": characters}).select(time).to_series()
