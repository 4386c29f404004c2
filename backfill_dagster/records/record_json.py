"""Decoded records, and parts of them, as JSON in the protocol's own form.

Links become {"$link": <CID>}, byte strings {"$bytes": <standard base64, not padded>} (Data Model specification).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import cbrrr
import orjson
import polars as pl

from backfill_dagster.records.blocks import Link, Record
from backfill_dagster.repos.cid import cid_text, is_repo_cid

# JSON escapes line breaks within strings, so that a bare one stands between two records only.
_BREAK_TEXT = "\n"
_BREAK = orjson.Fragment(_BREAK_TEXT)
_MANY = 64
# An integer that may be too long for orjson; or letters that look like one.
_LONG_NEGATIVE = "-[0-9]{19}"

# A bare SHA-256 multihash.
_CID_V0_HEAD = b"\x12\x20"
_CID_V0_BYTES = 34


def link_text(link: Link) -> str:
    """Write a link as text, whatever its record calls a CID: in base32, or `Qm...` for one of version 0.

    All of its bytes are written, so that two links never become one.
    """
    if is_repo_cid(link) or _is_of_version_0(link):
        return cid_text(link)
    # Of other links libipld would refuse some, and leave out what stands behind the end of others.
    return str(cbrrr.CID(link).encode())


def _is_of_version_0(link: Link) -> bool:
    return len(link) == _CID_V0_BYTES and link.startswith(_CID_V0_HEAD)


def to_json(value: Any) -> bytes:
    """Write a decoded value as compact JSON in UTF-8, keys in the record's order."""
    try:
        return orjson.dumps(value, default=_tagged)
    except orjson.JSONEncodeError:
        # Negative integers of CBOR reach past the 64 bits that orjson writes.
        text = json.dumps(value, default=_tagged, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()


def records_as_json(records: Sequence[Record], written: Mapping[str, pl.Series] | None = None) -> pl.Series:
    """Write records as a text column; many in one go, which is twice as fast as one by one.

    `written` is the JSON of some fields, as `to_json` has written it: it is taken as it is, and null is none.
    """
    if len(records) < _MANY:
        return json_series([to_json(record) for record in records])
    items: list[Any] = [_BREAK] * (2 * len(records) - 1)
    items[::2] = _with_fragments(records, written or {})
    try:
        text = orjson.dumps(items, default=_tagged)[1:-1]
    except orjson.JSONEncodeError:
        return json_series([to_json(record) for record in records])
    return pl.Series([text], dtype=pl.Binary).cast(pl.String).str.split(f",{_BREAK_TEXT},").explode()


def _with_fragments(records: Sequence[Record], written: Mapping[str, pl.Series]) -> list[Record]:
    """Put the JSON of fields in their places, in copies of the records that have them."""
    items = list(records)
    for name, texts in written.items():
        # What orjson could not write tells that of the whole record it must not write the rest either.
        if texts.str.contains(_LONG_NEGATIVE).any():
            continue
        for row, text in enumerate(texts.cast(pl.Binary).to_list()):
            if text is not None:
                items[row] = {**items[row], name: orjson.Fragment(text)}
    return items


def json_series(values: Sequence[bytes | None]) -> pl.Series:
    """Make a text column of JSON as `to_json` writes it."""
    return pl.Series(values, dtype=pl.Binary).cast(pl.String)


def _tagged(value: object) -> dict[str, str]:
    if type(value) is Link:
        return {"$link": link_text(value)}
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).rstrip(b"=").decode()}
    raise TypeError(f"a decoded record holds a {type(value).__name__}")
