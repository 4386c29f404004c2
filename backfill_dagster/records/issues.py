"""What was wrong with a record that is kept all the same: `field:problem`, by row.

A field that does not hold what its lexicon promises becomes null, or loses the elements that are not what they
must be, and is named here; the record itself stays.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa


class Problem(StrEnum):
    """The closed set of what can be wrong with a field; an issue is `<path of the field>:<problem>`."""

    MISSING = "missing"  # required by the lexicon
    NULL = "null"  # present, and null, which no lexicon read here allows
    NOT_A_STRING = "not_a_string"
    NOT_A_LIST = "not_a_list"
    NOT_A_MAP = "not_a_map"
    NOT_A_BLOB = "not_a_blob"
    BAD_ELEMENT = "bad_element"  # of a list: left out of the column
    NOT_AN_AT_URI = "not_an_at_uri"
    NO_DID = "no_did"  # an AT-URI whose authority is a handle
    NOT_A_CID = "not_a_cid"
    NOT_A_DID = "not_a_did"
    DIFFERS = "differs"  # `$type` is not the collection that the record stands in
    NOT_SELF = "not_self"  # a record key, where the lexicon knows but the one record `self`
    RESERVED_KEY = "reserved_key"  # a map key `$link` or `$bytes`, which JSON cannot tell from the real thing
    UNPARSEABLE = "unparseable"
    OUT_OF_RANGE = "out_of_range"  # an instant outside the years 1 to 9999
    NO_ZONE = "no_zone"  # read as UTC
    DATE_ONLY = "date_only"  # read as midnight UTC
    NONSTANDARD = "nonstandard"  # one clear instant, not written as the protocol asks


class Issues:
    """The issues of one frame of records, gathered by row position."""

    def __init__(self) -> None:
        self._by_row: dict[int, list[str]] = {}

    def add(self, row: int, path: str, problem: Problem) -> None:
        """Name a problem of a row's field, once."""
        issues = self._by_row.setdefault(row, [])
        issue = f"{path}:{problem}"
        if issue not in issues:
            issues.append(issue)

    def of_rows(self, rows: Sequence[int]) -> "Issues":
        """Return a view for problems of some of the rows, which it numbers from 0."""
        return _IssuesOfRows(self, rows)

    def add_all(self, others: "Issues", rows: Sequence[int] | None = None) -> None:
        """Add issues that were gathered apart; of some of the rows, if these are given."""
        for row, issues in others._by_row.items():
            mine = self._by_row.setdefault(row if rows is None else rows[row], [])
            mine.extend(issue for issue in issues if issue not in mine)

    def column(self, rows: int) -> pl.Series:
        """All issues as list<str> of length `rows`; a row without any holds an empty list."""
        lengths = np.zeros(rows + 1, np.int32)
        for row, issues in self._by_row.items():
            lengths[row + 1] = len(issues)
        texts = [issue for row in sorted(self._by_row) for issue in self._by_row[row]]
        lists = pa.ListArray.from_arrays(lengths.cumsum(dtype=np.int32), pa.array(texts, pa.string()))
        return pl.Series("issues", lists)


class _IssuesOfRows(Issues):
    def __init__(self, whole: Issues, rows: Sequence[int]) -> None:
        super().__init__()
        self._whole = whole
        self._rows = rows

    def add(self, row: int, path: str, problem: Problem) -> None:
        self._whole.add(self._rows[row], path, problem)


def problem_of(parent: Mapping[str, Any], key: str, otherwise: Problem) -> Problem:
    """Say what is wrong with a field that is not what it must be: missing, null, or `otherwise`."""
    if key not in parent:
        return Problem.MISSING
    return Problem.NULL if parent[key] is None else otherwise
