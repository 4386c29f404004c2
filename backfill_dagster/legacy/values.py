"""Structured values that stand in text columns: JSON, or a Python value as `repr` writes it, which nothing evaluates.

Keys are given the names that the lexicons have: an SDK for Python writes `py_type` for `$type` and `mime_type` for
`mimeType`, and writes null where a field is absent.
"""

from __future__ import annotations

import ast
import math
from typing import Any

import cbrrr
import orjson

from backfill_dagster.records.blocks import Link

# A record has a megabyte at most; what `repr` makes of one is somewhat longer.
_MAX_JSON, _MAX_REPR = 4_000_000, 1_000_000
_MAX_DEPTH = 60
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_ABSENT = frozenset(("", "None", "null"))
_LEXICON_NAMES = {
    "py_type": "$type",
    "mime_type": "mimeType",
    "aspect_ratio": "aspectRatio",
    "byte_start": "byteStart",
    "byte_end": "byteEnd",
    "created_at": "createdAt",
}


def is_absent(text: str | None) -> bool:
    """Tell whether a text stands for no value at all."""
    return text is None or text.strip() in _ABSENT


def read_structured(text: str) -> Any:
    """Return the value that a text stands for, in lexicons' terms.

    Raises ValueError for what is neither JSON nor a Python value, or nothing that a record can hold.
    """
    return _in_lexicon_s_terms(_parse(text), 0)


def _parse(text: str) -> Any:
    if len(text) <= _MAX_JSON and _depth(text) <= _MAX_DEPTH:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
        if len(text) <= _MAX_REPR:
            try:
                return ast.literal_eval(text.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise ValueError("is neither JSON nor a Python value") from error
    raise ValueError("is too long, or nested too deep")


def _depth(text: str) -> int:
    """Return how deep brackets are nested at most, whether they stand within strings or not."""
    depth = deepest = 0
    for character in text:
        if character in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSING:
            depth = max(0, depth - 1)
    return deepest


def _in_lexicon_s_terms(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("is nested too deep")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("has a key that is no text")
        for key in value:
            _require_characters(key)
        return _map(value, depth)
    if isinstance(value, list):
        return [_in_lexicon_s_terms(item, depth + 1) for item in value]
    if isinstance(value, str):
        _require_characters(value)
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"holds a {type(value).__name__} that no record can hold")


def _require_characters(text: str) -> None:
    """Refuse half of a surrogate pair, which an escape can stand for and no UTF-8 can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a character") from error


def _map(value: dict[str, Any], depth: int) -> Any:
    if value.keys() == {"$link"}:
        return _link(value["$link"]) or value
    # An SDK's, which has a null for each field that is absent.
    is_sdk_s = "py_type" in value
    named: dict[str, Any] = {}
    for key, item in value.items():
        if is_sdk_s and item is None:
            continue
        name = _LEXICON_NAMES.get(key, key)
        if name in named:
            raise ValueError(f"has {name} twice")
        inner = item
        if key == "ref":
            inner = item["link"] if isinstance(item, dict) and item.keys() == {"link"} else item
            named[name] = _link(inner) or _in_lexicon_s_terms(item, depth + 1)
        else:
            named[name] = _in_lexicon_s_terms(inner, depth + 1)
    return named


def _link(text: object) -> Link | None:
    if not isinstance(text, str) or not text.startswith("b"):
        return None
    try:
        return Link(cbrrr.CID.decode(text).cid_bytes)
    except (ValueError, TypeError):
        return None
