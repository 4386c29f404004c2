"""Fields of decoded records -> columns of what they must be, with every departure named.

Every value's type is looked at here: Arrow would take a string for a list of letters, and bytes for text.
A parent of None is absent, or was named already: its fields are null without being a problem.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa

from backfill_dagster.records.issues import FieldProblem, Issues, problem_of

Map = dict[str, Any]
Parents = Sequence[Map | None]
Kind = TypeVar("Kind")
Value = TypeVar("Value")
# Names a problem of the field at a path, in the row at hand.
Note = Callable[[str, FieldProblem], None]

_ABSENT = object()


def text_series(values: Sequence[str | None]) -> pl.Series:
    """Make a text column; anything else in it is a defect, and raises TypeError."""
    return pl.Series(values, dtype=pl.String, strict=True)


def no_texts(rows: int) -> pl.Series:
    """Make a text column of nulls."""
    return pl.Series([None], dtype=pl.String).new_from_index(0, rows)


def texts_series(values: Sequence[Sequence[str | None] | None]) -> pl.Series:
    """Make a list<str> column."""
    return pl.Series(pa.array(values, pa.list_(pa.string())))


def spread(values: Iterable[Value | None], rows: Sequence[int], height: int) -> list[Value | None]:
    """Put values in their places among `height` rows, the others of which are null."""
    places: list[Value | None] = [None] * height
    for row, value in zip(rows, values, strict=True):
        places[row] = value
    return places


def read_present(
    records: Sequence[Map], key: str, kind: type[Kind], otherwise: FieldProblem, issues: Issues
) -> tuple[list[int], list[Kind]]:
    """Read an optional field that must be of one kind: the rows that have it, and their values."""
    rows = [row for row, record in enumerate(records) if key in record]
    values = [records[row][key] for row in rows]
    if set(map(type, values)) <= {kind}:
        return rows, values
    sound = []
    for row in rows:
        if type(records[row][key]) is kind:
            sound.append(row)
        else:
            issues.add(row, key, problem_of(records[row], key, otherwise))
    return sound, [records[row][key] for row in sound]


def read_texts(
    parents: Parents, key: str, path: str, issues: Issues, *, required: bool = True
) -> list[str | None]:
    """Read the string field `key` of each parent, which `path` names in issues."""
    return _read(parents, key, path, issues, required, str, FieldProblem.NOT_A_STRING)


def read_maps(
    parents: Parents, key: str, path: str, issues: Issues, *, required: bool = True
) -> list[Map | None]:
    """Read the map field `key` of each parent, which `path` names in issues."""
    return _read(parents, key, path, issues, required, dict, FieldProblem.NOT_A_MAP)


def read_lists(
    parents: Parents, key: str, path: str, issues: Issues, *, required: bool = True
) -> list[list[Any] | None]:
    """Read the list field `key` of each parent, which `path` names in issues, its elements as they are."""
    return _read(parents, key, path, issues, required, list, FieldProblem.NOT_A_LIST)


def read_text_lists(records: Sequence[Map], key: str, issues: Issues) -> pl.Series:
    """Read an optional list of strings of each record; elements that are none are left out, and named."""
    rows, lists = read_present(records, key, list, FieldProblem.NOT_A_LIST, issues)
    if not set(map(type, chain.from_iterable(lists))) <= {str}:
        for position, (row, values) in enumerate(zip(rows, lists, strict=True)):
            if any(type(value) is not str for value in values):
                issues.add(row, key, FieldProblem.BAD_ELEMENT)
                lists[position] = [value for value in values if type(value) is str]
    return texts_series(spread(lists, rows, len(records)))


def read_text(parent: Map, key: str, path: str, note: Note) -> str | None:
    """Read a required string field of one parent."""
    value = parent.get(key)
    if type(value) is str:
        return value
    note(path, problem_of(parent, key, FieldProblem.NOT_A_STRING))
    return None


def read_map(parent: Map, key: str, path: str, note: Note) -> Map | None:
    """Read a required map field of one parent."""
    value = parent.get(key)
    if type(value) is dict:
        return value
    note(path, problem_of(parent, key, FieldProblem.NOT_A_MAP))
    return None


def _read(
    parents: Parents, key: str, path: str, issues: Issues, required: bool, kind: type, otherwise: FieldProblem
) -> list[Any]:
    values: list[Any] = [None if parent is None else parent.get(key, _ABSENT) for parent in parents]
    if set(map(type, values)) == {kind}:
        return values
    for row, value in enumerate(values):
        if type(value) is kind:
            continue
        values[row] = None
        parent = parents[row]
        if parent is not None and (required or value is not _ABSENT):
            issues.add(row, path, problem_of(parent, key, otherwise))
    return values
