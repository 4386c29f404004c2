from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import libipld
import orjson
import pytest

from backfill_dagster.sandbox.dag_cbor import Link, cid_of
from backfill_dagster.sandbox.mst_writer import build_tree, layer_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_car(path: Path) -> tuple[Any, dict[bytes, Any]]:
    header, blocks = libipld.decode_car(path.read_bytes())
    return header["roots"][0], blocks


def leaves_of(blocks: Mapping[Any, Any], cid: bytes) -> list[tuple[bytes, Link]]:
    """A walk as simple as can be, by another decoder."""
    node, key, found = blocks[cid], b"", []
    if node["l"] is not None:
        found += leaves_of(blocks, node["l"])
    for entry in node["e"]:
        key = key[: entry["p"]] + entry["k"]
        found.append((key, Link(entry["v"])))
        if entry["t"] is not None:
            found += leaves_of(blocks, entry["t"])
    return found


def test_key_heights(shared_dir: Path) -> None:
    vectors = orjson.loads((shared_dir / "vectors/interop/mst/key_heights.json").read_bytes())
    assert len(vectors) == 9
    for vector in vectors:
        assert layer_of(vector["key"].encode()) == vector["height"]


def test_all_trees_of_seven_keys(shared_dir: Path) -> None:
    folder = shared_dir / "vectors/mst/cars/exhaustive"
    root, blocks = read_car(folder / "exhaustive_127.car")
    entries = leaves_of(blocks, root)
    assert len(entries) == 7
    for number in range(128):
        present = [entry for place, entry in enumerate(entries) if number >> place & 1]
        root, blocks = read_car(folder / f"exhaustive_{number:03}.car")
        ours, nodes = build_tree(present)
        assert ours == root
        assert {node.cid for node in nodes} == set(blocks)


@pytest.mark.parametrize("name", ["empty", "small-1", "weird", "migrated", "deactivated-admin"])
def test_trees_of_official_servers(shared_dir: Path, name: str) -> None:
    root, blocks = read_car(shared_dir / f"cars/{name}.car")
    entries = leaves_of(blocks, blocks[root]["data"])
    ours, nodes = build_tree(entries)
    assert ours == blocks[root]["data"]
    assert all(node.cid in blocks for node in nodes)


def test_the_order_of_writing_does_not_matter() -> None:
    rng = random.Random(5)
    entries = [(f"app.bsky.feed.like/{rng.getrandbits(60):x}".encode(), cid_of(b"\xa0")) for _ in range(3000)]
    root, nodes = build_tree(sorted(entries))
    rng.shuffle(entries)
    again, _ = build_tree(entries)
    assert again == root
    # What was built is what a reader finds.
    blocks = {node.cid: libipld.decode_dag_cbor(node.data) for node in nodes}
    assert leaves_of(blocks, root) == sorted(entries)


def test_a_key_far_above_the_others_hangs_on_empty_nodes() -> None:
    keys = [f"app.bsky.feed.like/{number}".encode() for number in range(5000)]
    low = next(key for key in keys if layer_of(key) == 0)
    high = next(key for key in keys if layer_of(key) >= 5 and key > low)
    entries = [(low, cid_of(b"\xa0")), (high, cid_of(b"\xa0"))]
    root, nodes = build_tree(entries)
    assert len(nodes) == layer_of(high) + 1
    assert leaves_of({node.cid: libipld.decode_dag_cbor(node.data) for node in nodes}, root) == entries
