"""Every field that a study's YAML may have, read from the pydantic models that validate it."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from backfill_dagster.config.section import Section
from backfill_dagster.config.sources import SOURCES
from backfill_dagster.config.study import Study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

_SCALARS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Path: "path",
    datetime: "date or instant",
    type(None): "null",
    Any: "anything",
}
SOURCE_TYPE = "[source](#sources)"


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One field: its name, its type in terms of YAML, its default (None if it must be given), and its meaning."""

    name: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """One mapping of the YAML: where it stands, what it is for, and its fields without those that are mappings."""

    path: str
    description: str
    fields: tuple[ConfigField, ...]


def study_sections() -> list[ConfigSection]:
    """Return all mappings of a study's YAML but sources, each before those that stand in it."""
    return list(_sections("backfill", Study))


def source_sections() -> list[ConfigSection]:
    """Return the mappings that describe a source, one of each type; their path is the type."""
    return [section for kind, model in SOURCES.items() for section in _sections(kind, model)]


def _sections(path: str, model: type[Section]) -> Iterator[ConfigSection]:
    inner = {name: found for name, field in model.model_fields.items() if (found := _section_of(field))}
    fields = (_field(name, field) for name, field in model.model_fields.items() if name not in inner)
    yield ConfigSection(path, _first_paragraph(model), tuple(fields))
    for name, (below, section) in inner.items():
        yield from _sections(f"{path}.{name}{below}", section)


def _section_of(field: FieldInfo) -> tuple[str, type[Section]] | None:
    """Return the model of a field that is a mapping of its own, and what stands between the two in the path."""
    annotation = field.annotation
    if get_origin(annotation) is dict:
        key, value = get_args(annotation)
        place = ".<record type>" if get_origin(key) is Literal else ".<name>"
        return (place, value) if _is_section(value) else None
    members = [member for member in (get_args(annotation) or (annotation,)) if member is not type(None)]
    return ("", members[0]) if len(members) == 1 and _is_section(members[0]) else None


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _first_paragraph(model: type[Section]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


def _field(name: str, field: FieldInfo) -> ConfigField:
    limits = _limits(field.metadata)
    kind = _type_of(field.annotation)
    return ConfigField(
        name,
        f"{kind}, {limits}" if limits else kind,
        None if field.is_required() else _default(field.get_default(call_default_factory=True)),
        field.description or "",
    )


def _default(value: Any) -> str:
    match value:
        case None:
            return "none"
        case {}:
            return "`{}`"
        case tuple():
            return f"`[{', '.join(map(str, value))}]`"
        case str() | Path():
            return f"`{value}`"
        case _:
            return f"`{json.dumps(value)}`"


def _type_of(annotation: Any) -> str:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = _limits(members[1:])
        return f"{_type_of(members[0])} {limits}".rstrip()
    if origin is Literal:
        return _either(f"`{member}`" for member in members)
    if origin is tuple:
        return f"list of {_type_of(members[0])}"
    if origin is dict:
        return f"mapping of {_type_of(members[0])} to {_type_of(members[1])}"
    if origin in (Union, types.UnionType):
        given = [member for member in members if member is not type(None)]
        if any(_is_section(get_args(member)[0]) for member in given if get_origin(member) is Annotated):
            return SOURCE_TYPE
        return _either(dict.fromkeys(map(_type_of, given)))
    return _SCALARS[annotation]


def _either(names: Any) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else str(last)


def _limits(metadata: Any) -> str:
    told = []
    for limit in metadata:
        match limit:
            case Ge():
                told.append(f"from {limit.ge}")
            case Gt():
                told.append(f"above {limit.gt}")
            case Le():
                told.append(f"to {limit.le}")
            case Lt():
                told.append(f"below {limit.lt}")
            case MinLen():
                told.append(f"at least {limit.min_length}")
            case MaxLen():
                told.append(f"at most {limit.max_length} characters")
    return " ".join(told)
