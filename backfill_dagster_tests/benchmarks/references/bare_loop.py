"""The bare loop: frame, hash, walk, decode, and nothing else.

What no reader in Python of a whole, unforged repository can do without. Nothing is checked but the hashes, no
column is made and no record is kept.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from libipld import decode_dag_cbor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CID_BYTES = 36
_DIGEST = 4  # bytes of a CID before its digest


def read_records(cars: Iterable[Path]) -> int:
    """Read each file; return how many records there were."""
    return sum(_read(car.read_bytes()) for car in cars)


def _read(car: bytes) -> int:
    blocks = _frame(car)
    commit = decode_dag_cbor(blocks[_root(car)])
    records = 0
    waiting = [commit["data"]]
    while waiting:
        node = decode_dag_cbor(blocks[waiting.pop()])
        key = b""
        for entry in node["e"]:
            key = key[: entry["p"]] + entry["k"]
            decode_dag_cbor(blocks[entry["v"]])
            records += 1
            if entry["t"] is not None:
                waiting.append(entry["t"])
        if node["l"] is not None:
            waiting.append(node["l"])
    return records


def _frame(car: bytes) -> dict[bytes, bytes]:
    blocks: dict[bytes, bytes] = {}
    size = len(car)
    position = 1 + car[0]
    while position < size:
        length = car[position]
        position += 1
        if length > 0x7F:
            length &= 0x7F
            shift = 7
            while True:
                byte = car[position]
                position += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
        start = position + _CID_BYTES
        end = position + length
        cid = car[position:start]
        block = car[start:end]
        if sha256(block).digest() != cid[_DIGEST:]:
            raise ValueError("a block does not have the hash of its CID")
        blocks[cid] = block
        position = end
    return blocks


def _root(car: bytes) -> bytes:
    header = decode_dag_cbor(car[1 : 1 + car[0]])
    root: bytes = header["roots"][0]
    return root
