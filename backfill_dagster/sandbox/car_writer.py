"""Writing CAR version 1 (https://ipld.io/specs/transport/car/carv1/)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.sandbox.dag_cbor import Link, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.sandbox.mst_writer import Block


def uvarint(number: int) -> bytes:
    """Write an unsigned LEB128 number."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def write_header(*roots: Link) -> bytes:
    """Write the header of a CAR, with its length before it."""
    header = encode({"roots": list(roots), "version": 1})
    return uvarint(len(header)) + header


def write_blocks(blocks: Iterable[Block]) -> bytes:
    """Write the sections of a CAR in the given order."""
    chunks: list[bytes] = []
    for cid, data in blocks:
        chunks += (uvarint(len(cid) + len(data)), cid, data)
    return b"".join(chunks)
