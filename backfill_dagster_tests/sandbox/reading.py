"""Reading a repository in the simplest way there is, by another decoder than the verifier's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import libipld

if TYPE_CHECKING:
    from collections.abc import Iterator


def frames(car: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Cut a CAR into its header and (cid, block) pairs, knowing only that all CIDs have 36 bytes."""

    def uvarint(place: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = car[place]
            value |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                return value, place

    size, place = uvarint(0)
    header, place = car[place : place + size], place + size
    found = []
    while place < len(car):
        size, place = uvarint(place)
        found.append((car[place : place + 36], car[place + 36 : place + size]))
        place += size
    assert place == len(car)
    return header, found


def walk(blocks: dict[bytes, bytes], cid: bytes, visited: set[bytes]) -> Iterator[tuple[str, bytes]]:
    visited.add(cid)
    node: Any = libipld.decode_dag_cbor(blocks[cid])
    if node["l"] is not None:
        yield from walk(blocks, node["l"], visited)
    key = b""
    for entry in node["e"]:
        key = key[: entry["p"]] + entry["k"]
        yield key.decode(), entry["v"]
        if entry["t"] is not None:
            yield from walk(blocks, entry["t"], visited)
