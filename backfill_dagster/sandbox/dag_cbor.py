"""Writing DAG-CBOR and naming it by CID (https://ipld.io/specs/codecs/dag-cbor/spec/).

Links and byte strings are told apart by type, not by what their bytes look like. `Raw` puts bytes into the
output as they are: that is how a block that breaks the rules is made.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Any

import libipld

_CID_DAG_CBOR = bytes((1, 0x71, 0x12, 32))
_CID_RAW = bytes((1, 0x55, 0x12, 32))

_Append = Callable[[bytes], None]


class Link(bytes):
    """A CID in its binary form, 36 bytes."""

    __slots__ = ()


class Raw(bytes):
    """Bytes that stand in the output unchanged, whether or not they are CBOR."""

    __slots__ = ()


def encode(value: Any) -> bytes:
    """Write a tree of dict, list, str, int, float, bool, None, bytes, Link and Raw as DAG-CBOR."""
    chunks: list[bytes] = []
    _write(value, chunks.append)
    return b"".join(chunks)


def cid_of(block: bytes) -> Link:
    """Name a DAG-CBOR block."""
    return Link(_CID_DAG_CBOR + sha256(block).digest())


def blob_cid(digest: bytes) -> Link:
    """Name a blob (codec raw) by the SHA-256 of its bytes."""
    return Link(_CID_RAW + digest)


def cid_text(cid: bytes) -> str:
    """Write a CID as people see it: multibase base32, `bafyrei…`."""
    return str(libipld.encode_multibase("b", cid))


def as_json(value: Any) -> Any:
    """Turn what `encode` takes into plain JSON data: links as `$link`, byte strings as unpadded `$bytes`."""
    kind = type(value)
    if kind is dict:
        return {key: as_json(item) for key, item in value.items()}
    if kind is list:
        return [as_json(item) for item in value]
    if kind is Link:
        return {"$link": cid_text(value)}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
    return value


def head(major: int, argument: int) -> bytes:
    """Write the head of an item in its shortest form: major type 0-7 and its argument."""
    top = major << 5
    if argument < 24:
        return bytes((top | argument,))
    if argument < 1 << 8:
        return bytes((top | 24, argument))
    if argument < 1 << 16:
        return struct.pack(">BH", top | 25, argument)
    if argument < 1 << 32:
        return struct.pack(">BI", top | 26, argument)
    return struct.pack(">BQ", top | 27, argument)


_SHORT_TEXT = [head(3, length) for length in range(256)]


def _write(value: Any, put: _Append) -> None:
    _WRITERS[type(value)](value, put)


def _write_text(value: str, put: _Append) -> None:
    data = value.encode()
    size = len(data)
    put(_SHORT_TEXT[size] + data if size < 256 else head(3, size) + data)


def _write_map(value: dict[str, Any], put: _Append) -> None:
    start, keys = _layout(tuple(value))
    put(start)
    for key, written in keys:
        put(written)
        item = value[key]
        _WRITERS[type(item)](item, put)


def _write_list(value: list[Any], put: _Append) -> None:
    put(head(4, len(value)))
    for item in value:
        _write(item, put)


def _write_int(value: int, put: _Append) -> None:
    put(head(0, value) if value >= 0 else head(1, -1 - value))


def _write_bytes(value: bytes, put: _Append) -> None:
    put(head(2, len(value)))
    put(value)


def _write_link(value: Link, put: _Append) -> None:
    # Tag 42 over a byte string that begins with the identity multibase prefix.
    put(b"\xd8\x2a\x58\x25\x00" + value)


@lru_cache(maxsize=4096)
def _layout(keys: tuple[str, ...]) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Write a map's head, and its keys in the order of DAG-CBOR: by length and then by bytes."""
    ordered = sorted((len(key.encode()), key.encode(), key) for key in keys)
    return head(5, len(keys)), tuple((key, head(3, size) + data) for size, data, key in ordered)


_WRITERS: dict[type, Callable[[Any, _Append], None]] = {
    dict: _write_map,
    list: _write_list,
    str: _write_text,
    int: _write_int,
    bool: lambda value, put: put(b"\xf5" if value else b"\xf4"),
    type(None): lambda _, put: put(b"\xf6"),
    float: lambda value, put: put(struct.pack(">Bd", 0xFB, value)),
    bytes: _write_bytes,
    Link: _write_link,
    Raw: lambda value, put: put(value),
}
