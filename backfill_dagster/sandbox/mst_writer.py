"""Building the Merkle search tree of a repository (https://atproto.com/specs/repository#mst-structure)."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.sandbox.dag_cbor import Link, cid_of, head

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LINK = b"\xd8\x2a\x58\x25\x00"
_NULL = b"\xf6"


class Block(NamedTuple):
    """One block of a repository."""

    cid: Link
    data: bytes


class Tree(NamedTuple):
    """A tree: the CID of its root, and all of its nodes."""

    root: Link
    nodes: list[Block]


class Leaf(NamedTuple):
    """A record in a tree, and the layer that it stands on."""

    layer: int
    key: bytes
    value: Link


class Entry(NamedTuple):
    """A leaf as its node writes it: with the subtree that comes after it."""

    key: bytes
    value: Link
    right: Link | None


def layer_of(key: bytes) -> int:
    """Return the layer of a key: the leading zero bits of its SHA-256, taken in pairs."""
    return (256 - int.from_bytes(sha256(key).digest()).bit_length()) // 2


def build_tree(entries: Iterable[tuple[bytes, Link]]) -> Tree:
    """Build the tree of (key, value CID) pairs with distinct keys."""
    return tree_of(leaves_of(entries))


def leaves_of(entries: Iterable[tuple[bytes, Link]]) -> list[Leaf]:
    """Put (key, value CID) pairs in their order and on their layers."""
    return [Leaf(layer_of(key), key, value) for key, value in sorted(entries)]


def tree_of(leaves: list[Leaf]) -> Tree:
    """Build a tree of leaves in the order and on the layers given, whether or not these are the right ones.

    The tree grows layer by layer from the bottom. Between two leaves of higher layers lies a gap; all that is
    in one gap becomes one node, and this fills the gap in the layer above.
    """
    gaps: list[Link | None] = [None] * (len(leaves) + 1)
    nodes: list[Block] = []
    layer = 0
    while True:
        # Leaves of this layer go into the nodes now being closed; the others wait for their own layer.
        higher: list[Leaf] = []
        closed: list[Link | None] = []
        own: list[Entry] = []
        left = gaps[0]
        for leaf, gap in zip(leaves, gaps[1:], strict=True):
            if leaf.layer == layer:
                own.append(Entry(leaf.key, leaf.value, gap))
                continue
            closed.append(_close(left, own, nodes))
            higher.append(leaf)
            own, left = [], gap
        if not higher:
            nodes.append(write_node(left, own))
            return Tree(nodes[-1].cid, nodes)
        closed.append(_close(left, own, nodes))
        leaves, gaps = higher, closed
        layer += 1


def write_node(left: Link | None, entries: Sequence[Entry]) -> Block:
    """Write a node: the subtree before its entries, and the entries in the order given."""
    chunks = [b"\xa2\x61e", head(4, len(entries))]
    previous = b""
    for key, value, right in entries:
        shared = _shared_prefix(previous, key)
        rest = key[shared:]
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
            value,
        )
        previous = key
    chunks += (b"\x61l", _NULL if left is None else _LINK + left)
    data = b"".join(chunks)
    return Block(cid_of(data), data)


def _close(left: Link | None, own: list[Entry], nodes: list[Block]) -> Link | None:
    """End a node in the middle of the tree: where nothing lies, no node is made either."""
    if not own and left is None:
        return None
    nodes.append(write_node(left, own))
    return nodes[-1].cid


def _shared_prefix(first: bytes, second: bytes) -> int:
    length = min(len(first), len(second))
    difference = int.from_bytes(first[:length]) ^ int.from_bytes(second[:length])
    return length - (difference.bit_length() + 7) // 8
