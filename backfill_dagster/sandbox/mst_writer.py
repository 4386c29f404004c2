"""Building the Merkle search tree of a repository (https://atproto.com/specs/repository#mst-structure)."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.sandbox.dag_cbor import Link, cid_of, head

if TYPE_CHECKING:
    from collections.abc import Iterable

_LINK = b"\xd8\x2a\x58\x25\x00"
_NULL = b"\xf6"


class Block(NamedTuple):
    """One block of a repository."""

    cid: Link
    data: bytes


class _Leaf(NamedTuple):
    layer: int
    key: bytes
    value: Link


def layer_of(key: bytes) -> int:
    """Return the layer of a key: the leading zero bits of its SHA-256, taken in pairs."""
    return (256 - int.from_bytes(sha256(key).digest()).bit_length()) // 2


def build_tree(entries: Iterable[tuple[bytes, Link]]) -> tuple[Link, list[Block]]:
    """Build the tree of (key, value CID) pairs with distinct keys; returns its root and all of its nodes.

    The tree grows layer by layer from the bottom. Between two leaves of higher layers lies a gap; all that is
    in one gap becomes one node, and this fills the gap in the layer above.
    """
    leaves = [_Leaf(layer_of(key), key, value) for key, value in sorted(entries)]
    gaps: list[Link | None] = [None] * (len(leaves) + 1)
    nodes: list[Block] = []
    layer = 0
    while True:
        # Leaves of this layer go into the nodes now being closed; the others wait for their own layer.
        higher: list[_Leaf] = []
        closed: list[Link | None] = []
        own: list[tuple[_Leaf, Link | None]] = []
        left = gaps[0]
        for leaf, gap in zip(leaves, gaps[1:], strict=True):
            if leaf.layer == layer:
                own.append((leaf, gap))
                continue
            closed.append(_close(left, own, nodes))
            higher.append(leaf)
            own, left = [], gap
        if not higher:
            return _add_node(left, own, nodes), nodes
        closed.append(_close(left, own, nodes))
        leaves, gaps = higher, closed
        layer += 1


def _close(left: Link | None, own: list[tuple[_Leaf, Link | None]], nodes: list[Block]) -> Link | None:
    """End a node in the middle of the tree: where nothing lies, no node is made either."""
    return _add_node(left, own, nodes) if own or left is not None else None


def _add_node(left: Link | None, own: list[tuple[_Leaf, Link | None]], nodes: list[Block]) -> Link:
    chunks = [b"\xa2\x61e", head(4, len(own))]
    previous = b""
    for leaf, right in own:
        shared = _shared_prefix(previous, leaf.key)
        rest = leaf.key[shared:]
        chunks += (
            b"\xa4\x61k",
            head(2, len(rest)),
            rest,
            b"\x61p",
            head(0, shared),
            b"\x61t",
            _NULL if right is None else _LINK + right,
            b"\x61v",
            _LINK,
            leaf.value,
        )
        previous = leaf.key
    chunks += (b"\x61l", _NULL if left is None else _LINK + left)
    data = b"".join(chunks)
    node = Block(cid_of(data), data)
    nodes.append(node)
    return node.cid


def _shared_prefix(first: bytes, second: bytes) -> int:
    length = min(len(first), len(second))
    difference = int.from_bytes(first[:length]) ^ int.from_bytes(second[:length])
    return length - (difference.bit_length() + 7) // 8
