"""The Merkle Search Tree: which paths a repository has, and the CID of the record at each.

https://atproto.com/specs/repository#mst-structure. The tree is a function of its contents, so there is one right
shape for it, and here every rule of that shape is checked on the way.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import libipld

from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.nesting import SMALL_BLOCK_BYTES, nests_deeper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.repos.car import CarBytes, CarIndex
    from backfill_dagster.repos.limits import RepoLimits

# "str.length <= 1024" in the reference implementation; the specification leaves the number open.
MAX_KEY_BYTES = 1024

_HASH_BITS = 256
_MAX_LAYER = _HASH_BITS // 2 - 1
# A key is on a layer if first <= SHA-256(key) < after: twice the layer's number of zero bits, and no two more.
_LAYER_BOUNDS = [
    ((1 << (_HASH_BITS - 2 - 2 * layer)).to_bytes(32), (1 << (_HASH_BITS - 2 * layer)).to_bytes(33)[-32:])
    for layer in range(_MAX_LAYER + 1)
]
_LAYER_BOUNDS[0] = (_LAYER_BOUNDS[0][0], b"\xff" * 33)


def _head(major: int, argument: int) -> bytes:
    """Return the one canonical head of a CBOR item; `argument` below 65536."""
    if argument < 24:
        return bytes([major << 5 | argument])
    if argument < 0x100:
        return bytes([major << 5 | 24, argument])
    return bytes([major << 5 | 25]) + argument.to_bytes(2)


# A map, its array of entries, and the map of each.
_NODE_LEVELS = 3

# The pieces of an encoded node (CBOR majors: 0 integer, 2 bytes, 4 array), those with a number made in advance.
_LINK = b"\xd8\x2a" + _head(2, CID_BYTES + 1) + b"\x00"
_SUFFIX = [b"\xa4\x61k" + _head(2, length) for length in range(MAX_KEY_BYTES + 1)]
_SHARED_NO_TREE = [
    b"\x61p" + _head(0, length) + b"\x61t\xf6\x61v" + _LINK for length in range(MAX_KEY_BYTES + 1)
]
_SHARED_TREE = [b"\x61p" + _head(0, length) + b"\x61t" + _LINK for length in range(MAX_KEY_BYTES + 1)]
_VALUE = b"\x61v" + _LINK
_ENTRIES = b"\xa2\x61e"
_LEFT = b"\x61l" + _LINK
_NO_LEFT = b"\x61l\xf6"
_MAX_ENTRIES = 0xFFFF


class Leaves(NamedTuple):
    """A tree's leaves in the order of their keys: key (`collection/rkey`) and CID of the record, in parallel."""

    keys: list[bytes]
    cids: list[bytes]


class Node(NamedTuple):
    """One node: the subtree before its keys, its keys and their values, and the subtrees between and after them.

    Each of `trees` stands behind as many keys as its number says.
    """

    left: bytes | None
    keys: list[bytes]
    values: list[bytes]
    trees: list[tuple[int, bytes]]


# What is put off until all before it is done: neighbouring leaves of a node, the subtree after them, their layer.
_Step: TypeAlias = tuple["Sequence[bytes]", "Sequence[bytes]", bytes | None, int]


def key_layer(key: bytes) -> int:
    """Return the layer of the tree that a key belongs on, counted from the bottom."""
    zero_bits = _HASH_BITS - int.from_bytes(hashlib.sha256(key).digest()).bit_length()
    return zero_bits // 2


def walk_tree(car: CarBytes, index: CarIndex, root: bytes, limits: RepoLimits) -> Leaves:
    """Visit the whole tree below `root` and return its leaves. Records are not looked at.

    Keys are checked as the tree's format demands, not for being repository paths.

    Raises RepoRejectedError: bad_tree, missing_block, corrupt_block, too_large.
    """
    leaves = Leaves([], [])
    layers: list[int] = []
    last_key = b""
    key_bytes = 0
    nodes = 1
    waiting = _top_steps(_load_node(car, index, root, limits), limits)
    while waiting:
        keys, values, tree, layer = waiting.pop()
        if keys:
            # Also what keeps the walk finite: no subtree can stand in two places, much less inside itself.
            if keys[0] <= last_key:
                raise _bad_tree(f"key {keys[0]!r} stands after {last_key!r}")
            last_key = keys[-1]
            key_bytes += sum(map(len, keys))
            leaves.keys.extend(keys)
            leaves.cids.extend(values)
            layers.extend([layer] * len(keys))
            _check_size(limits, nodes, len(layers), key_bytes)
        if tree is not None:
            nodes += 1
            node = _load_node(car, index, tree, limits)
            if not node.keys and node.left is None:
                raise _bad_tree("a subtree is empty")
            waiting.extend(_steps(node, layer - 1))
    _check_layers(leaves.keys, layers)
    return leaves


def decode_node(block: bytes, *, max_entries: int) -> Node:
    """Read one node and check what can be seen from it alone: canonical encoding, prefixes, order of keys.

    Raises RepoRejectedError: bad_tree, too_large.
    """
    keys: list[bytes] = []
    values: list[bytes] = []
    trees: list[tuple[int, bytes]] = []
    try:
        if len(block) > SMALL_BLOCK_BYTES and nests_deeper(block, _NODE_LEVELS):
            raise _bad_tree("a node nests deeper than the format's")
        entries, left = libipld.decode_dag_cbor(block).values()
        if len(entries) > min(max_entries, _MAX_ENTRIES):
            raise _too_large(f"a node has {len(entries)} entries of at most {max_entries}")
        # The decoder gives links and byte strings the same type, and takes numbers in a longer form than the
        # shortest. So what it read is written again, in the only form that a node can have, and compared.
        written = [_ENTRIES, _head(4, len(entries))]
        key = b""
        for entry in entries:
            suffix, shared, tree, value = entry.values()
            # One comparison for three rules: keys ascend, a suffix is not empty, and no shared byte is repeated.
            if shared > len(key) or suffix[:1] <= key[shared : shared + 1]:
                raise _bad_tree(f"a key has the wrong prefix or order, after {key!r}")
            key = key[:shared] + suffix
            if len(key) > MAX_KEY_BYTES:
                raise _bad_tree(f"a key has {len(key)} bytes of at most {MAX_KEY_BYTES}")
            keys.append(key)
            values.append(value)
            if tree is None:
                written += (_SUFFIX[len(suffix)], suffix, _SHARED_NO_TREE[shared], value)
            else:
                written += (_SUFFIX[len(suffix)], suffix, _SHARED_TREE[shared], tree, _VALUE, value)
                trees.append((len(keys), tree))
        written += (_NO_LEFT,) if left is None else (_LEFT, left)
        canonical = b"".join(written) == block
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # The decoder refuses with ValueError and RecursionError; the others mean values of another type.
        raise _bad_tree(f"a block is no tree node ({type(error).__name__}: {error!s:.100})") from None
    if not canonical:
        raise _bad_tree("a node has other fields or another encoding than the format's")
    return Node(left, keys, values, trees)


def _load_node(car: CarBytes, index: CarIndex, cid: bytes, limits: RepoLimits) -> Node:
    if not cid.startswith(DAG_CBOR_PREFIX):
        raise _bad_tree(f"a link to a node is of an unsupported kind: {cid.hex()[:80]}")
    start, end = index.span(cid)
    if end - start > limits.max_node_bytes:
        raise _too_large(f"a node has {end - start} bytes of at most {limits.max_node_bytes}")
    return decode_node(car[start:end], max_entries=limits.max_node_entries)


def _top_steps(top: Node, limits: RepoLimits) -> list[_Step]:
    """Return what the top node has, last first; only there can be nothing at all."""
    if not top.keys:
        if top.left is not None:
            raise _bad_tree("the top node has no keys, only a subtree")
        return []
    layer = key_layer(top.keys[0])
    if layer > min(limits.max_depth, _MAX_LAYER):
        raise _too_large(f"the tree has {layer} layers of at most {limits.max_depth}")
    return _steps(top, layer)


def _steps(node: Node, layer: int) -> list[_Step]:
    """Return what a node on this layer has, last first."""
    left, keys, values, trees = node
    if left is None and not trees:
        return [(keys, values, None, layer)]
    if layer == 0:
        raise _bad_tree("a subtree stands below the lowest layer")
    steps: list[_Step] = [((), (), left, layer)]
    start = 0
    for end, tree in trees:
        steps.append((keys[start:end], values[start:end], tree, layer))
        start = end
    steps.append((keys[start:], values[start:], None, layer))
    steps.reverse()
    return steps


def _check_layers(keys: Sequence[bytes], layers: Sequence[int]) -> None:
    """Check that each key is on the layer where it belongs. Twice as fast in one go as node by node."""
    sha256 = hashlib.sha256
    for key, layer in zip(keys, layers, strict=True):
        first, after = _LAYER_BOUNDS[layer]
        if not first <= sha256(key).digest() < after:
            raise _bad_tree(f"key {key!r} of layer {key_layer(key)} stands on layer {layer}")


def _check_size(limits: RepoLimits, nodes: int, records: int, key_bytes: int) -> None:
    if nodes > limits.max_nodes:
        raise _too_large(f"the tree has more than {limits.max_nodes} nodes")
    if records > limits.max_records:
        raise _too_large(f"the tree has more than {limits.max_records} records")
    if key_bytes > limits.max_paths_bytes:
        raise _too_large(f"the tree's keys have more than {limits.max_paths_bytes} bytes")


def _bad_tree(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, detail)


def _too_large(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TOO_LARGE, detail)
