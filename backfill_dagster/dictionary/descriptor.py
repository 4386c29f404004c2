"""The data dictionary for programs: JSON after Frictionless' Data Package and Table Schema (datapackage.org).

A resource's `files` are globs, which a Data Package does not know: what there is depends on the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from backfill_dagster.columns import type_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backfill_dagster.columns import Column
    from backfill_dagster.dictionary.resources import Resource

VERSION = 1
_TYPES: dict[type[pl.DataType], str] = {
    pl.String: "string",
    pl.Binary: "string",
    pl.Boolean: "boolean",
    pl.Date: "date",
    pl.Datetime: "datetime",
    pl.List: "array",
    pl.Struct: "object",
    pl.Float64: "number",
}


def descriptor(name: str, resources: Sequence[Resource]) -> bytes:
    """Return the dictionary of a study of this name as JSON, the same bytes for the same tables."""
    told = {
        "name": name,
        "version": VERSION,
        "resources": [_resource(resource) for resource in resources],
    }
    return orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _resource(resource: Resource) -> dict[str, Any]:
    key: dict[str, Any] = {"primaryKey": list(resource.key)} if resource.key else {}
    return {
        "name": resource.name,
        "files": list(resource.files),
        "format": "parquet",
        "description": resource.description,
        "inner": resource.inner,
        "keyHoldsInEachFileOnly": resource.apart,
        "schema": {"fields": list(_fields(resource.columns)), **key},
    }


def _categories(column: Column) -> str:
    # Table Schema's categories are whole values.
    return "categories" if isinstance(column.dtype, pl.String) else "categoriesWithin"


def _fields(columns: Iterable[Column]) -> Iterable[dict[str, Any]]:
    for column in columns:
        words = [word for words in column.words for word in words]
        categories = [
            {"value": value, "label": meaning}
            for value, meaning in {word.value: word.meaning for word in reversed(words)}.items()
        ]
        yield {
            "name": column.name,
            "type": _TYPES.get(type(column.dtype), "integer"),
            "arrowType": type_name(column.dtype),
            "description": column.description,
            **({"format": "binary"} if isinstance(column.dtype, pl.Binary) else {}),
            **({"constraints": {"required": True}} if column.required else {}),
            **({_categories(column): categories[::-1]} if words else {}),
        }
