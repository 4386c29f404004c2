"""Repositories exported from official PDS software, read by a few naive lines that share nothing with the package."""

import json
from pathlib import Path
from typing import Any

import cbrrr

CARS = Path(__file__).resolve().parent.parent / "data" / "cars"
WHOLE = ("small-1", "weird", "migrated", "deactivated-admin", "empty")


def manifest(name: str) -> dict[str, Any]:
    """Read what the exporting side says is in a repository."""
    return dict(json.loads((CARS / f"{name}.manifest.json").read_text()))


def record_blocks(name: str) -> tuple[str, str, list[tuple[str, bytes, bytes]]]:
    """Read a CAR: its account's DID, its revision, and (key, CID, block) of each record in the order of the keys."""
    car = (CARS / f"{name}.car").read_bytes()
    length, position = _varint(car, 0)
    header = _decode(car[position : position + length])
    position += length
    blocks: dict[bytes, bytes] = {}
    while position < len(car):
        length, position = _varint(car, position)
        blocks[car[position : position + 36]] = car[position + 36 : position + length]
        position += length
    commit = _decode(blocks[header["roots"][0]])
    keys: list[tuple[str, bytes]] = []
    _walk(blocks, commit["data"], keys)
    return commit["did"], commit["rev"], [(key, cid, blocks[cid]) for key, cid in keys]


def _walk(blocks: dict[bytes, bytes], cid: bytes | None, keys: list[tuple[str, bytes]]) -> None:
    if cid is None:
        return
    node = _decode(blocks[cid])
    _walk(blocks, node["l"], keys)
    key = b""
    for entry in node["e"]:
        key = key[: entry["p"]] + entry["k"]
        keys.append((key.decode(), entry["v"]))
        _walk(blocks, entry["t"], keys)


def _decode(block: bytes) -> Any:
    return cbrrr.decode_dag_cbor(block, cid_ctor=bytes)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
