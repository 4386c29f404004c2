"""Decoded records, and parts of them, as JSON in the protocol's own form.

Links become {"$link": <CID>}, byte strings {"$bytes": <standard base64, not padded>} (Data Model specification).
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

import cbrrr
import orjson
import polars as pl

from backfill_dagster.records.blocks import Link
from backfill_dagster.repos.cid import cid_text


def link_text(link: Link) -> str:
    """Write a link as text in base32, whatever its record calls a CID."""
    try:
        return cid_text(link)
    except ValueError:
        return str(cbrrr.CID(link).encode())


def to_json(value: Any) -> bytes:
    """Write a decoded value as compact JSON in UTF-8, keys in the record's order."""
    try:
        return orjson.dumps(value, default=_tagged)
    except orjson.JSONEncodeError:
        # Negative integers of CBOR reach past the 64 bits that orjson writes.
        text = json.dumps(value, default=_tagged, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()


def json_series(values: Sequence[bytes | None]) -> pl.Series:
    """Make a text column of JSON as `to_json` writes it."""
    return pl.Series(values, dtype=pl.Binary).cast(pl.String)


def _tagged(value: object) -> dict[str, str]:
    if isinstance(value, Link):
        return {"$link": link_text(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).rstrip(b"=").decode()}
    raise TypeError(f"a decoded record holds a {type(value).__name__}")
