"""Reads one `configs/<name>.yaml`, replaces `${NAME}` by environment variables and validates it.

Every complaint names the file, the field, the value and what is allowed. Nothing here opens a source or the network.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from backfill_dagster.config.section import Section
from backfill_dagster.config.sources import SOURCES
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # A merge, `<<`, is no key: what it brings may be overridden.
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_MAX_SHOWN = 200
# A shorter value of a variable is no secret, and could stand in any message by chance.
_MIN_SECRET = 6
# What pydantic says in terms of Python, in those of YAML.
_MESSAGES = {
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "path_type": "must be a path",
    "too_short": "must have at least one item",
}
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_study(path: Path) -> Study:
    """Read and validate one backfill YAML; the study's name is the file's stem.

    Raises ConfigError naming the file, the field, the value and what is allowed.
    """
    document = read_yaml(path)
    if not isinstance(document, dict) or "backfill" not in document:
        raise ConfigError(f"{path}: must hold one mapping named `backfill`")
    unknown = sorted(map(str, set(document) - {"backfill"}))
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]}: unknown key; only `backfill` stands at the top")
    body = _fill_variables(document["backfill"], path, "backfill")
    try:
        study = Study.model_validate(body)
    except ValidationError as error:
        raise ConfigError(_describe(path, document["backfill"], error)) from None
    except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
        # A date that no calendar has, a number of thousands of digits, a key that is none.
        raise ConfigError(
            f"{path}: backfill: has a value that cannot be: {' '.join(str(error).split())}"
        ) from None
    if study.name != path.stem:
        raise ConfigError(
            f"{path}: backfill.name = {study.name!r}: must be {path.stem!r}, the name of the file"
        )
    return study.with_filled_in(dict(_texts_with_variables(document["backfill"], ())))


def read_yaml(path: Path) -> Any:
    """Return what a YAML file says; raises ConfigError for one that cannot be read, or has a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  a SafeLoader
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        # What a tag is not fit for, PyYAML finds out in the middle of making a value of it.
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None


def _texts_with_variables(value: Any, place: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the texts that name variables, each with its place."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts_with_variables(item, (*place, str(name)))
    elif isinstance(value, str) and _VARIABLE.search(value):
        yield ".".join(place), value


def _fill_variables(value: Any, path: Path, field: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill_variables(item, path, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_variables(item, path, f"{field}.{number}") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"{path}: {field} = {value!r}: the environment variable {name} is not set")
        return os.environ[name]

    return _VARIABLE.sub(lookup, value)


def _describe(path: Path, body: Any, error: ValidationError) -> str:
    """Say each mistake once: pydantic also tells of what follows from one, and of every reading of a value.

    `body` is what the YAML says. What the environment filled in can be a secret, and is never repeated.
    """
    items = [dict(item) for item in error.errors(include_url=False)]
    lines = [_describe_one(path, body, item) for item in items if not _follows_from_another(item, items)]
    return _without_values("\n".join(dict.fromkeys(lines)), body)


def _without_values(text: str, body: Any) -> str:
    """Put the names of the environment's variables in the place of their values."""
    names = {name for _, value in _texts_with_variables(body, ()) for name in _VARIABLE.findall(value)}
    values = {
        os.environ[name]: name for name in sorted(names) if len(os.environ.get(name, "")) >= _MIN_SECRET
    }
    for value in sorted(values, key=len, reverse=True):
        for told in (value, repr(value)[1:-1]):
            text = text.replace(told, f"${{{values[value]}}}")
    return text


def _follows_from_another(item: dict[str, Any], items: list[dict[str, Any]]) -> bool:
    where, length = item["loc"], len(item["loc"])
    if item["type"] == "too_short":
        # What is wrong with its items has emptied the list.
        return any(other["loc"][:length] == where and len(other["loc"]) > length for other in items)
    if item["type"] == "missing":
        # The key is there, misspelt.
        beside = [other for other in items if other["type"] == "extra_forbidden"]
        return any(
            other["loc"][:-1] == where[:-1] and where[-1] in _close(str(other["loc"][-1]), [where[-1]])
            for other in beside
        )
    return False


def _describe_one(path: Path, body: Any, item: dict[str, Any]) -> str:
    names, allowed = _walk(item["loc"])
    field = ".".join(["backfill", *names])
    value = item["input"] if "[key]" in item["loc"] else _written(body, names, item["input"])
    if item["type"] == "extra_forbidden":
        return f"{path}: {field} = {_shown(value)}: unknown key{_suggest(names[-1], allowed)}"
    if item["type"] == "missing":
        return f"{path}: {field}: is missing"
    message = _MESSAGES.get(item["type"]) or _in_yaml_s_words(item["msg"])
    if names[-1:] in (["alert_webhook_variable"], ["salt_variable"]):
        # Somebody may have put the secret itself there, which no message is to repeat.
        return f"{path}: {field}: {message}"
    return f"{path}: {field} = {_shown(value)}: {message}"


def _written(body: Any, names: list[str], value: Any) -> Any:
    """Return what the YAML itself has under these names; the value as it was read, if it has nothing there."""
    for name in names:
        if isinstance(body, dict) and name in body:
            body = body[name]
        elif isinstance(body, list) and name.isdecimal() and int(name) < len(body):
            body = body[int(name)]
        else:
            return value
    return body


def _in_yaml_s_words(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be", 1)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        return "a number of more digits than are ever needed"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _walk(steps: tuple[str | int, ...]) -> tuple[list[str], list[str]]:
    """Return the path in the YAML that an error's location stands for, and the keys allowed beside its last one.

    A location also names the member of a union that was tried: which source it is, or what a value is read as.
    """
    names: list[str] = []
    kinds: list[type[Section]] = [Study]
    allowed: list[str] = []
    is_mapping = False
    for step in steps:
        if step == "[key]":
            continue  # What is wrong is the name itself, which is in the path already.
        if isinstance(step, int) or is_mapping:
            names.append(str(step))
            is_mapping = False
        elif len(kinds) > 1 and step in SOURCES:
            kinds = [SOURCES[step]]
        elif kinds:
            names.append(step)
            allowed = list(kinds[0].model_fields)
            field = kinds[0].model_fields.get(step)
            annotation = None if field is None else field.annotation
            kinds, is_mapping = _sections(annotation), get_origin(annotation) is dict
    return names, allowed


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [kind for member in get_args(annotation) for kind in _sections(member)]


def _suggest(name: str, allowed: list[str]) -> str:
    if not allowed:
        return ""
    close = _close(name, allowed)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"{hint or ';'} allowed here: {', '.join(allowed)}"


def _close(name: str, allowed: list[str]) -> list[str]:
    return difflib.get_close_matches(name, allowed, n=1)
