"""Columns of stored tables: a name, a type and a meaning, of which schemas and documentation are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.closed_sets import ClosedSet


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its type, and what it means in one sentence.

    It is `required` if it is never null. `words` are the closed sets that its values, or what these are made of, are
    out of; none if it holds anything else.
    """

    name: str
    dtype: pl.DataType
    description: str
    required: bool = False
    words: tuple[type[ClosedSet], ...] = ()


def schema_of(columns: Iterable[Column]) -> pl.Schema:
    """Return the columns in order, with their Polars types."""
    return pl.Schema({column.name: column.dtype for column in columns})


def type_name(kind: object) -> str:
    """Name the type of a column as Arrow does, with which all readers of Parquet agree."""
    match kind:
        case pl.List():
            return f"list<{type_name(kind.inner)}>"
        case pl.Struct():
            return f"struct<{', '.join(f'{field.name}: {type_name(field.dtype)}' for field in kind.fields)}>"
        case pl.Datetime():
            return (
                f"timestamp[{kind.time_unit}, tz={kind.time_zone}]"
                if kind.time_zone
                else f"timestamp[{kind.time_unit}]"
            )
        case _:
            return _ARROW_NAMES[str(kind)]


_ARROW_NAMES = {
    "String": "string",
    "Binary": "binary",
    "Boolean": "bool",
    "Date": "date32",
    **{f"{sign}Int{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "Float32": "float",
    "Float64": "double",
}
