"""Accounts by ranges of their DIDs: the lots in which they are worked on, so that memory has a bound.

Tables are sorted by URI, and so by DID: of a range, only those row groups are read that have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Of the identifiers of did:plc, in their order as text; they are hashes, and so spread evenly.
_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_PREFIX = "did:plc:"
_MOST = len(_ALPHABET) ** 2
_PLACE = "_place"


@dataclass(frozen=True, slots=True)
class DidRange:
    """The DIDs from `first` on and before `end`, as text; open where None."""

    first: str | None = None
    end: str | None = None

    def holds(self, column: str, prefix: str = "") -> pl.Expr:
        """Tell which values of a column are in the range; `prefix` is what they have before their DID."""
        value = pl.col(column)
        inside = value.is_not_null()
        if self.first is not None:
            inside &= value >= prefix + self.first
        if self.end is not None:
            inside &= value < prefix + self.end
        return inside


def did_ranges(rows: int, at_once: int) -> list[DidRange]:
    """Cut all DIDs into ranges of which each has about `at_once` of so many rows, at most; powers of two."""
    wanted = 1
    while wanted < _MOST and rows > wanted * at_once:
        wanted *= 2
    pairs = [first + second for first in _ALPHABET for second in _ALPHABET]
    bounds = [None, *(_PREFIX + pairs[_MOST * number // wanted] for number in range(1, wanted)), None]
    return [DidRange(first, end) for first, end in pairwise(bounds)]


def dealt_by_range(rows: pl.DataFrame, ranges: Sequence[DidRange]) -> Iterator[tuple[DidRange, pl.DataFrame]]:
    """Yield the rows (`did`) of each of these ranges, which follow each other and leave nothing out, that has any."""
    bounds = pl.Series([dids.first for dids in ranges[1:]], dtype=pl.String)
    places = bounds.search_sorted(rows["did"], side="right")
    numbered = rows.with_columns(pl.Series(_PLACE, places))
    for (place,), some in numbered.partition_by(_PLACE, as_dict=True, include_key=False).items():
        yield ranges[int(place)], some
