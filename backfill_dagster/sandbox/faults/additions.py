"""Records and keys of the faults' own, which no account's can meet."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from backfill_dagster.sandbox.dag_cbor import cid_of, encode
from backfill_dagster.sandbox.mst_writer import Block, layer_of
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.written import POST, Defect, Written, iso_milliseconds, microseconds

_CLOCK = 55
_CREATED = microseconds(datetime(2024, 10, 6, 12, tzinfo=UTC))


def own_post(defect: Defect | None = None, /, **fields: Any) -> Written:
    """Write a post in the study window, always under the same key."""
    value = {"$type": POST, "createdAt": iso_milliseconds(_CREATED), **fields}
    return Written(POST, tid(_CREATED, _CLOCK), value, _CREATED if defect is None else None, defect)


def own_block() -> Block:
    """Write the block that stands under all keys of `own_keys`."""
    data = encode({"$type": "com.example.fault"})
    return Block(cid_of(data), data)


@lru_cache(maxsize=32)
def own_keys(layer: int, count: int, padding: int = 0) -> tuple[bytes, ...]:
    """Find keys of one layer, ascending; longer by `padding` bytes than they need be.

    No key of an account stands between them. It takes about 4 to the power of the layer tries for each.
    """
    keys = (f"com.example.fault/{number:07}{'k' * padding}".encode() for number in itertools.count())
    return tuple(itertools.islice((key for key in keys if layer_of(key) == layer), count))
