"""The root of a tree, made of its contents: keys and values have one tree, and so one root.

https://atproto.com/specs/repository#mst-structure. Trees grow layer by layer from the bottom, all of them together:
between two of them stands a mark that no layer ever takes.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX
from backfill_dagster.repos.mst_node import (
    ENTRIES,
    LEFT,
    NO_LEFT,
    SHARED_NO_TREE,
    SHARED_TREE,
    SUFFIX,
    VALUE,
    head,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_HASH_BYTES = 32
_HASH_BITS = 8 * _HASH_BYTES
# Above every layer that a key can have.
_MARK = _HASH_BITS
# Of keys up to so many bytes it is found for all together what they share with the key before; of others one by one.
_USUAL_KEY_BYTES = 64
_KEYS_AT_ONCE = 65_536
_NONE = -1


def tree_roots(keys: Sequence[bytes], values: NDArray[np.uint8], sizes: Sequence[int]) -> list[bytes]:
    """Return the CIDs of the roots of trees, of which each has so many of the keys, in order.

    `values` are the CIDs of the records, 36 bytes a row. The keys of each tree must ascend, and none have more than
    1,024 bytes (MAX_KEY_BYTES). Of keys that are not so it makes what is no tree, whose root no commit names.
    """
    return _Trees(keys, values, sizes).roots()


class _Trees:
    """Trees on their way up: what is left of their keys, with a mark before and after each tree, and the gaps between.

    A gap holds the number of the subtree that stands there, or none.
    """

    def __init__(self, keys: Sequence[bytes], values: NDArray[np.uint8], sizes: Sequence[int]) -> None:
        self._keys = keys
        # As objects of their own: each is put into a node once.
        data = values.tobytes()
        self._values = [data[first : first + CID_BYTES] for first in range(0, len(data), CID_BYTES)]
        self._nodes: list[bytes] = []
        bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        # Which key each item is; marks have none.
        self._items = np.insert(np.arange(len(keys), dtype=np.int64), bounds, _NONE)
        marks = self._items == _NONE
        self._layers = np.full(len(self._items), _MARK, np.int16)
        self._layers[~marks] = _layers(keys)
        self._shared = np.zeros(len(self._items), np.int64)
        self._shared[~marks] = _shared_with_previous(keys)
        self._gaps = np.full(len(self._items) - 1, _NONE, np.int64)

    def roots(self) -> list[bytes]:
        """Build all layers."""
        layer = 0
        while (self._items != _NONE).any():
            self._close(layer)
            layer += 1
        return [self._nodes[node] if node != _NONE else _EMPTY_ROOT for node in self._gaps.tolist()]

    def _close(self, layer: int) -> None:
        """Make nodes of the keys of one layer; what is left are those of higher ones."""
        own = self._layers == layer
        [left] = (~own).nonzero()
        before, after = left[:-1], left[1:]
        is_mark = self._items[left] == _NONE
        # Where nothing lies, no node is made either; and nothing stands above the top of a tree.
        links = self._gaps[before]
        has_keys = after - before > 1
        made = has_keys | ((links != _NONE) & ~(is_mark[:-1] & is_mark[1:]))
        gaps = links.copy()
        gaps[made] = len(self._nodes) + np.arange(np.count_nonzero(made))
        self._write(own, before[made], after[made])
        # Keys are in order, so that two of them share what all between them share.
        if len(left) < len(own):
            self._shared = np.concatenate([self._shared[:1], np.minimum.reduceat(self._shared[1:], before)])
        self._items, self._layers, self._gaps = self._items[left], self._layers[left], gaps

    def _write(self, own: NDArray[np.bool_], before: NDArray[np.int64], after: NDArray[np.int64]) -> None:
        """Encode nodes, each of the keys of this layer between two other items, and of the subtrees around them."""
        [places] = own.nonzero()
        # Behind a key of another layer there is none in the node to share bytes with.
        shared = np.where(own[places - 1], self._shared[places], 0).tolist()
        keys, values, nodes = self._keys, self._values, self._nodes
        items = self._items[places].tolist()
        entries = [
            SUFFIX[len(keys[item]) - prefix]
            + keys[item][prefix:]
            + (SHARED_NO_TREE[prefix] if right == _NONE else SHARED_TREE[prefix] + nodes[right] + VALUE)
            + values[item]
            for item, prefix, right in zip(items, shared, self._gaps[places].tolist(), strict=True)
        ]
        lefts = self._gaps[before].tolist()
        counts = (after - before - 1).tolist()
        sha256, first = hashlib.sha256, 0
        for left, count in zip(lefts, counts, strict=True):
            block = b"".join(
                (
                    ENTRIES,
                    head(4, count),
                    *entries[first : first + count],
                    NO_LEFT if left == _NONE else LEFT + nodes[left],
                )
            )
            nodes.append(DAG_CBOR_PREFIX + sha256(block).digest())
            first += count


def _layers(keys: Sequence[bytes]) -> NDArray[np.int16]:
    """Return the layer of each key: the leading zero bits of its hash, in pairs."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(key).digest() for key in keys])
    words = np.frombuffer(digests, ">u8")[:: _HASH_BYTES // 8]
    # The exponent of the number as a floating one; rounding could carry it over, so only the upper half is looked at.
    upper = (words >> 32).astype(np.float64)
    bits = 32 - np.frexp(upper)[1]
    for number in np.flatnonzero(upper == 0).tolist():
        digest = digests[number * _HASH_BYTES : (number + 1) * _HASH_BYTES]
        bits[number] = _HASH_BITS - int.from_bytes(digest).bit_length()
    return (bits // 2).astype(np.int16)


def _shared_with_previous(keys: Sequence[bytes]) -> NDArray[np.int64]:
    """Return how many bytes each key shares with the one before it; the first shares none."""
    shared = np.zeros(len(keys), np.int64)
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        some = keys[max(0, first - 1) : first + _KEYS_AT_ONCE]
        own = len(keys[first : first + _KEYS_AT_ONCE])
        shared[first : first + own] = _shared(some)[-own:]
    return shared


def _shared(keys: Sequence[bytes]) -> NDArray[np.int64]:
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    if int(lengths.max(initial=0)) > _USUAL_KEY_BYTES:
        return np.array([0, *(_shared_bytes(one, other) for one, other in pairwise(keys))], np.int64)
    padded = np.array(keys, f"S{_USUAL_KEY_BYTES}").view(np.uint8).reshape(len(keys), _USUAL_KEY_BYTES)
    differs = padded[1:] != padded[:-1]
    until = np.where(differs.any(axis=1), differs.argmax(axis=1), _USUAL_KEY_BYTES)
    shared = np.zeros(len(keys), np.int64)
    # What stands behind the end of a key is no part of it.
    shared[1:] = np.minimum(until, np.minimum(lengths[1:], lengths[:-1]))
    return shared


def _shared_bytes(one: bytes, other: bytes) -> int:
    length = min(len(one), len(other))
    difference = int.from_bytes(one[:length]) ^ int.from_bytes(other[:length])
    return length - (difference.bit_length() + 7) // 8


_EMPTY_ROOT = DAG_CBOR_PREFIX + hashlib.sha256(ENTRIES + head(4, 0) + NO_LEFT).digest()
