"""What tells whether something would be drawn of the same again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROWS_AT_ONCE = 10_000


def digest_of(value: object) -> str:
    """Return the SHA-256 in hex of numbers, texts, times and frames, and of what consists of them."""
    digest = hashlib.sha256()
    for part in _told(value):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _told(value: object) -> Iterator[bytes]:
    """Yield what a value consists of, in an order of its own."""
    if isinstance(value, pl.DataFrame):
        yield repr(value.schema).encode()
        yield f"{value.height}".encode()
        # As text, rows take several times what they take in a frame.
        yield from (some.write_ndjson().encode() for some in value.iter_slices(_ROWS_AT_ONCE))
    elif is_dataclass(value):
        for field in fields(value):
            yield field.name.encode()
            yield from _told(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield f"{len(value)}".encode()
        for name in sorted(value, key=str):
            yield str(name).encode()
            yield from _told(value[name])
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield f"{len(value)}".encode()
        for one in value:
            yield from _told(one)
    else:
        yield repr(value).encode()
