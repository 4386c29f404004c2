"""Keys of records: whether they are usable, and the time in those that are TIDs."""

import numpy as np
import polars as pl

from backfill_dagster.records import syntax
from backfill_dagster.records.byte_matrix import matrix_of

_INSTANT = pl.Datetime("us", "UTC")
_TID = syntax.whole(syntax.TID)
# 11 of a TID's 13 characters hold its time and nothing else.
_TID_CHARACTERS = 13
_TIME_CHARACTERS = 11


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
    is_tid = rkeys.str.contains(_TID).fill_null(value=False)
    tids = rkeys.filter(is_tid)
    if tids.is_empty():
        return pl.Series([None], dtype=_INSTANT).new_from_index(0, len(rkeys))
    characters = matrix_of(tids, _TID_CHARACTERS)
    digits = characters - np.where(characters < ord("a"), np.uint8(ord("2")), np.uint8(ord("a") - 6))
    microseconds = digits[:, 0].astype(np.int64)
    for place in range(1, _TIME_CHARACTERS):
        microseconds <<= 5
        microseconds |= digits[:, place]
    if len(tids) == len(rkeys):
        return pl.Series(microseconds).cast(_INSTANT)
    times = np.zeros(len(rkeys), np.int64)
    times[is_tid.to_numpy()] = microseconds
    return pl.select(pl.when(is_tid).then(pl.Series(times).cast(_INSTANT))).to_series()
