"""CIDs as text, a column at a time: a third of the time that it takes one by one."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from backfill_dagster.records.byte_matrix import Matrix, matrix_of, texts_of
from backfill_dagster.repos.cid import CID_BYTES

_Words: TypeAlias = npt.NDArray[np.uint64]

# Multibase's prefix for base32 in lower case, and how many digits of five bits 36 bytes have.
_BASE32 = ord("b")
_DIGITS = 58
# Each five bytes are eight digits; a word of eight bytes is read from where the five begin.
_GROUPS = 8
_GROUP_BYTES = 5
_PADDED_BYTES = 48
# As many as the processor's cache holds.
_ROWS_AT_ONCE = 1024


def cid_texts(cids: pl.Series) -> pl.Series:
    """Write CIDs of the form that repositories use, in base32 (`bafy...`). Each must have 36 bytes."""
    if cids.is_empty():
        return pl.Series(dtype=pl.String)
    matrix = matrix_of(cids, CID_BYTES)
    texts = np.empty((len(matrix), 1 + _DIGITS), np.uint8)
    texts[:, 0] = _BASE32
    for first in range(0, len(matrix), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        texts[rows, 1:] = _digits(matrix[rows])
    return texts_of(texts)


def _digits(cids: Matrix) -> Matrix:
    padded = np.zeros((len(cids), _PADDED_BYTES), np.uint8)
    padded[:, :CID_BYTES] = cids
    groups = np.ndarray((len(cids), _GROUPS), ">u8", padded, strides=(_PADDED_BYTES, _GROUP_BYTES))
    bits = groups.astype(np.uint64)
    # 40 bits, spread over eight bytes by halves.
    bits >>= np.uint64(24)
    _move_apart(bits, upper=0x000000FFFFF00000, lower=0x00000000000FFFFF, by=12)
    _move_apart(bits, upper=0x000FFC00000FFC00, lower=0x000003FF000003FF, by=6)
    _move_apart(bits, upper=0x03E003E003E003E0, lower=0x001F001F001F001F, by=3)
    # The alphabet is a-z, then 2-7: one of 26 and more reaches 32 when 6 is added.
    is_figure = bits + np.uint64(0x0606060606060606)
    is_figure >>= np.uint64(5)
    is_figure &= np.uint64(0x0101010101010101)
    is_figure *= np.uint64(ord("a") + 26 - ord("2"))
    bits += np.uint64(int.from_bytes(b"a" * 8))
    bits -= is_figure
    return bits.astype(">u8").view(np.uint8)[:, :_DIGITS]


def _move_apart(bits: _Words, *, upper: int, lower: int, by: int) -> None:
    moved = bits & np.uint64(upper)
    moved <<= np.uint64(by)
    bits &= np.uint64(lower)
    bits |= moved
