from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import libipld
import pytest

from backfill_dagster.repos.faults import RepoFault
from backfill_dagster.sandbox.faults import (
    KeyTooLong,
    TreeBlowUp,
    TreeCycle,
    WideNode,
    WrongKeyOrder,
    WrongLayer,
)

from ..reading import walk

if TYPE_CHECKING:
    from .export import Export, Fetch


def node_of(found: Export, cid: bytes) -> Any:
    return libipld.decode_dag_cbor(found.blocks[cid])


def keys_of(node: Any) -> list[bytes]:
    keys, key = [], b""
    for entry in node["e"]:
        key = key[: entry["p"]] + entry["k"]
        keys.append(key)
    return keys


def nodes_of(found: Export) -> list[Any]:
    visited: set[bytes] = set()
    list(walk(found.blocks, found.commit["data"], visited))
    return [node_of(found, cid) for cid in visited]


def layer(key: bytes) -> int:
    bits = f"{int.from_bytes(hashlib.sha256(key).digest()):0256b}"
    return (len(bits) - len(bits.lstrip("0"))) // 2


def test_the_order_is_broken_where_it_is_said(fetch: Fetch) -> None:
    for how, broken_nodes in (("swapped", 1), ("repeated", 1), ("between_nodes", 0)):
        found = fetch(WrongKeyOrder(how))  # type: ignore[arg-type]
        keys = [key for key, _ in found.leaves]
        steps = [(first, second) for first, second in itertools.pairwise(keys) if first >= second]
        assert len(steps) == 1
        assert (steps[0][0] == steps[0][1]) is (how == "repeated")
        unsound = [
            node
            for node in nodes_of(found)
            if any(first >= second for first, second in zip(keys_of(node), keys_of(node)[1:], strict=False))
        ]
        assert len(unsound) == broken_nodes


@pytest.mark.parametrize("wrong", [0, 1, 4, 127])
def test_one_key_is_on_a_wrong_layer(fetch: Fetch, wrong: int) -> None:
    healthy, found = fetch(), fetch(WrongLayer(wrong))
    placed: dict[bytes, int] = {}

    def place(cid: bytes, height: int) -> None:
        node = node_of(found, cid)
        placed.update(dict.fromkeys(keys_of(node), height))
        for child in (node["l"], *(entry["t"] for entry in node["e"])):
            if child is not None:
                place(child, height - 1)

    top = max(wrong, *(layer(key.encode()) for key, _ in healthy.leaves))
    place(found.commit["data"], top)
    misplaced = [key for key, height in placed.items() if height != layer(key)]
    assert [placed[key] for key in misplaced] == [wrong]
    assert min(placed.values()) == 0


def test_a_long_key(fetch: Fetch) -> None:
    found = fetch(KeyTooLong(1500))
    assert sorted(len(key) for key, _ in found.leaves)[-2:][1] == 1500
    assert max(len(key) for key in (key for node in nodes_of(found) for key in keys_of(node))) == 1500


@pytest.mark.parametrize(("fault", "size"), [(WideNode(), 5_000_000), (WideNode(2000, 1000), 2_000_000)])
def test_a_wide_node(fetch: Fetch, fault: WideNode, size: int) -> None:
    found = fetch(fault)
    widest = max(nodes_of(found), key=lambda node: len(node["e"]))
    assert len(widest["e"]) >= fault.entries
    assert max(len(data) for data in found.blocks.values()) > size
    assert all(layer(key) == 0 for key in keys_of(widest))
    assert found.verdict() is RepoFault.TOO_LARGE


def test_a_cycle(fetch: Fetch) -> None:
    found = fetch(TreeCycle())
    [claimed] = found.wrong_hashes
    assert node_of(found, claimed)["l"] == found.commit["data"]
    with pytest.raises(RecursionError):
        list(walk(found.blocks, found.commit["data"], set()))


def test_a_blow_up(fetch: Fetch) -> None:
    fault = TreeBlowUp(levels=3, width=8)
    found = fetch(fault)
    visited: set[bytes] = set()
    leaves = list(walk(found.blocks, found.commit["data"], visited))
    assert len(visited) == 3
    # Each node is visited once for each key of the one above it, and once before these.
    assert len(leaves) == 8 + 9 * 8 + 81 * 8
    assert all(cid in found.blocks for _, cid in leaves)
    large = fetch(TreeBlowUp())
    assert len(large.car) - len(fetch().car) < 50_000
