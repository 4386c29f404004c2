"""The naive way: a dict per record, Polars left to infer the columns from a list of them, Parquet as it comes."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import libipld
import polars as pl

from backfill_dagster.config.study import RECORD_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_Block = dict[str, Any]


def write_blocks(cars: Iterable[Path], folder: Path) -> None:
    """Write what the blocks hold and no more: neither keys nor URIs, which stand in the tree alone, nor JSON."""
    records: dict[str, list[_Block]] = {collection: [] for collection in RECORD_TYPES}
    for car in cars:
        _, blocks = libipld.decode_car(car.read_bytes())
        for block in blocks.values():
            if isinstance(block, dict) and block.get("$type") in records:
                records[block["$type"]].append(block)
    _write(records, folder)


def write_rows(cars: Iterable[Path], folder: Path) -> None:
    """Write what a table must hold as well: whose record it is, its key, URI and CID, its time, and its JSON."""
    rows: dict[str, list[_Block]] = {collection: [] for collection in RECORD_TYPES}
    for car in cars:
        header, blocks = libipld.decode_car(car.read_bytes())
        commit = blocks[header["roots"][0]]
        for key, cid in _walk(blocks, commit["data"]):
            collection, _, rkey = key.decode().partition("/")
            if collection in rows and isinstance(blocks[cid], dict):
                rows[collection].append(_row(commit["did"], collection, rkey, cid, blocks[cid]))
    _write(rows, folder)


def _walk(blocks: dict[bytes, _Block], link: bytes) -> Iterator[tuple[bytes, bytes]]:
    node = blocks[link]
    if node["l"] is not None:
        yield from _walk(blocks, node["l"])
    key = b""
    for entry in node["e"]:
        key = key[: entry["p"]] + entry["k"]
        yield key, entry["v"]
        if entry["t"] is not None:
            yield from _walk(blocks, entry["t"])


def _row(did: str, collection: str, rkey: str, cid: bytes, record: _Block) -> _Block:
    try:
        created = datetime.fromisoformat(record.get("createdAt", ""))
    except (TypeError, ValueError):
        created = None
    return {
        "did": did,
        "collection": collection,
        "rkey": rkey,
        "uri": f"at://{did}/{collection}/{rkey}",
        "cid": libipld.encode_cid(cid),
        "created_at": None if created is None or created.tzinfo is None else created,
        "record": json.dumps(record, default=_text_of_bytes),
        **record,
    }


def _text_of_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _write(records: dict[str, list[_Block]], folder: Path) -> None:
    for collection, found in records.items():
        if found:
            frame = pl.DataFrame(found, infer_schema_length=None, strict=False)
            frame.write_parquet(folder / f"{collection}.parquet", compression="zstd")
