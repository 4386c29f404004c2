"""What was wrong with a record that is kept all the same: `field:problem`, by row.

A field that does not hold what its lexicon promises becomes null, or loses the elements that are not what they
must be, and is named here; the record itself stays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from backfill_dagster.closed_sets import ClosedSet


class FieldProblem(ClosedSet):
    """The closed set of what can be wrong with a field; an issue is `<path of the field>:<problem>`."""

    MISSING = "missing", "The field is absent, and the lexicon requires it."
    NULL = "null", "The field is present and null, which no lexicon read here allows."
    NOT_A_STRING = "not_a_string", "It must be a string."
    NOT_A_LIST = "not_a_list", "It must be a list."
    NOT_A_MAP = "not_a_map", "It must be a map."
    NOT_A_BLOB = "not_a_blob", "It must be a blob."
    BAD_ELEMENT = (
        "bad_element",
        "An element of the list is not what it must be, and is left out of the column.",
    )
    NOT_AN_AT_URI = "not_an_at_uri", "It must be an AT-URI."
    NO_DID = "no_did", "It is an AT-URI whose authority is a handle, so that no DID is known."
    NOT_A_CID = "not_a_cid", "It must be a CID."
    NOT_A_DID = "not_a_did", "It must be a DID."
    DIFFERS = "differs", "The record's `$type` is not the collection that it stands in."
    NOT_SELF = "not_self", "The record's key is another than `self`, the only one that the lexicon knows."
    RESERVED_KEY = (
        "reserved_key",
        "A map has the key `$link` or `$bytes`, which JSON cannot tell from a CID link or a byte string.",
    )
    UNPARSEABLE = "unparseable", "The date names no instant."
    OUT_OF_RANGE = "out_of_range", "The date is outside the years 1 to 9999, once in UTC."
    NO_ZONE = "no_zone", "The date has no zone, and is read as UTC."
    DATE_ONLY = "date_only", "The date has no time, and is read as midnight UTC."
    NONSTANDARD = "nonstandard", "The date is one clear instant, not written as the protocol asks."


class Issues:
    """The issues of one frame of records, gathered by row position."""

    def __init__(self) -> None:
        self._by_row: dict[int, list[str]] = {}

    def add(self, row: int, path: str, problem: FieldProblem) -> None:
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

    def add(self, row: int, path: str, problem: FieldProblem) -> None:
        self._whole.add(self._rows[row], path, problem)


def problem_of(parent: Mapping[str, Any], key: str, otherwise: FieldProblem) -> FieldProblem:
    """Say what is wrong with a field that is not what it must be: missing, null, or `otherwise`."""
    if key not in parent:
        return FieldProblem.MISSING
    return FieldProblem.NULL if parent[key] is None else otherwise
