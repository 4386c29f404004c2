"""The Merkle Search Tree: which paths a repository has, and the CID of the record at each.

https://atproto.com/specs/repository#mst-structure. The tree is a function of its contents, so there is one right
shape for it, and here every rule of that shape is checked on the way. The tree is read layer by layer from its top,
each from left to right, so that much can be done at once.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backfill_dagster.repos.car_bytes import forget, join_rows, slices_of
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.mst_node import decode_node
from backfill_dagster.repos.mst_nodes import NodeBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from backfill_dagster.repos.car import CarIndex
    from backfill_dagster.repos.car_bytes import CarBytes
    from backfill_dagster.repos.limits import RepoLimits
    from backfill_dagster.repos.mst_nodes import Flags, Nodes, Numbers

_HASH_BITS = 256
_MAX_LAYER = _HASH_BITS // 2 - 1
# Nodes that are looked at together, in number and bytes; they are Python's objects for that while.
_NODES_AT_ONCE = 4096
_BYTES_AT_ONCE = 4 * 2**20
_WORD_BYTES = 8


class Leaves(NamedTuple):
    """A tree's leaves in the order of their keys: key (`collection/rkey`), and the record's CID, 36 bytes a row."""

    keys: pa.LargeBinaryArray
    cids: NDArray[np.uint8]


def key_layer(key: bytes) -> int:
    """Return the layer of the tree that a key belongs on, counted from the bottom."""
    zero_bits = _HASH_BITS - int.from_bytes(hashlib.sha256(key).digest()).bit_length()
    return zero_bits // 2


def walk_tree(car: CarBytes, index: CarIndex, root: bytes, limits: RepoLimits) -> Leaves:
    """Visit the whole tree below `root` and return its leaves. Records are not looked at.

    Keys are checked as the tree's format demands, not for being repository paths.

    Raises RepoRejectedError: bad_tree, missing_block, corrupt_block, too_large.
    """
    walk = _Walk(car, index, limits)
    links, layers = walk.read_layer([root]), [1]
    while links:
        layers.append(len(links))
        links = walk.read_layer(links)
    walk.check()
    return _in_order(walk.pieces, layers)


class _Walk:
    """Reads the nodes of a tree, layer by layer, and keeps to the limits."""

    def __init__(self, car: CarBytes, index: CarIndex, limits: RepoLimits) -> None:
        self._car = car
        self._index = index
        self._limits = limits
        self._seen = np.zeros(len(index.starts), np.bool_)
        self._batch = NodeBatch(limits.max_node_entries)
        self._batch_bytes = 0
        # Per node of the batch.
        self._layers: list[int] = []
        self._layer: int | None = None
        self._nodes = 0
        self._records = 0
        self._key_bytes = 0
        self.pieces: list[_Piece] = []

    def read_layer(self, links: Sequence[bytes]) -> list[bytes]:
        """Read the nodes of the next layer below, by their CIDs; return the CIDs of the nodes below these."""
        children: list[bytes] = []
        for first in range(0, len(links), _NODES_AT_ONCE):
            for blocks in self._load(links[first : first + _NODES_AT_ONCE]):
                if self._layer is None:
                    self._layer = self._top_layer(blocks[0])
                children += self._batch.add(blocks)
                self._layers += [self._layer] * len(blocks)
                self._batch_bytes += sum(map(len, blocks))
                if len(self._layers) >= _NODES_AT_ONCE or self._batch_bytes >= _BYTES_AT_ONCE:
                    self.check()
            forget(self._car)
        if children and self._layer == 0:
            raise _bad_tree("a subtree stands below the lowest layer")
        self._layer = (self._layer or 0) - 1
        return children

    def _top_layer(self, block: bytes) -> int:
        """Return the top's layer, which its first key tells."""
        top = decode_node(block, max_entries=self._limits.max_node_entries)
        if not top.keys:
            if top.left is not None:
                raise _bad_tree("the top node has no keys, only a subtree")
            return 0
        layer = key_layer(top.keys[0])
        if layer > min(self._limits.max_depth, _MAX_LAYER):
            raise _too_large(f"the tree has {layer} layers of at most {self._limits.max_depth}")
        return layer

    def _load(self, links: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Yield nodes, none of which was asked for before; several at once, as long as they are small."""
        for link in links:
            if not link.startswith(DAG_CBOR_PREFIX):
                raise _bad_tree(f"a link to a node is of an unsupported kind: {link.hex()[:80]}")
        self._nodes += len(links)
        if self._nodes > self._limits.max_nodes:
            raise _too_large(f"the tree has more than {self._limits.max_nodes} nodes")
        rows = self._index.find(self._car, join_rows(links, CID_BYTES))
        # Also what keeps the walk finite: a key stands in the tree once, and so does a subtree.
        if self._seen[rows].any() or len(set(links)) < len(links):
            raise _bad_tree("a subtree stands in two places")
        self._seen[rows] = True
        starts, ends = self._index.starts[rows], self._index.ends[rows]
        sizes = ends - starts
        largest = int(sizes.max())
        if largest > self._limits.max_node_bytes:
            raise _too_large(f"a node has {largest} bytes of at most {self._limits.max_node_bytes}")
        at_once = len(links) if int(sizes.sum()) <= _BYTES_AT_ONCE else max(1, _BYTES_AT_ONCE // largest)
        for first in range(0, len(links), at_once):
            some = slice(first, first + at_once)
            yield slices_of(self._car, starts[some], ends[some])

    def check(self) -> None:
        """Check the nodes of the batch and put them aside as columns."""
        layers = np.array(self._layers, np.int64)
        nodes = self._batch.take()
        self._layers, self._batch_bytes = [], 0
        if not layers.size:
            return
        self._count(nodes)
        # The top of an empty repository is the one node that may be empty.
        if self._nodes > 1 and not (nodes.has_left | (nodes.counts > 0)).all():
            raise _bad_tree("a subtree is empty")
        if nodes.keys:
            _check_layers(nodes.keys, np.repeat(layers, nodes.counts))
        keys = pa.array(nodes.keys, pa.large_binary())
        self.pieces.append(_Piece(nodes.counts, nodes.has_left, nodes.has_right, keys, nodes.values))

    def _count(self, nodes: Nodes) -> None:
        self._records += len(nodes.keys)
        self._key_bytes += sum(map(len, nodes.keys))
        if self._records > self._limits.max_records:
            raise _too_large(f"the tree has more than {self._limits.max_records} records")
        if self._key_bytes > self._limits.max_paths_bytes:
            raise _too_large(f"the tree's keys have more than {self._limits.max_paths_bytes} bytes")


class _Piece(NamedTuple):
    """Some of a tree's nodes in the order in which they were read; see `Nodes`."""

    counts: Numbers
    has_left: Flags
    has_right: Flags
    keys: pa.LargeBinaryArray
    cids: NDArray[np.uint8]


def _check_layers(keys: Sequence[bytes], layers: Numbers) -> None:
    """Check that each key is on the layer where it belongs: its hash begins with twice as many zero bits."""
    sha256 = hashlib.sha256
    digests = join_rows([sha256(key).digest() for key in keys], _HASH_BITS // 8)
    words = np.ascontiguousarray(digests[:, :_WORD_BYTES]).view(">u8")[:, 0].astype(np.uint64)
    shifts = 8 * _WORD_BYTES - 2 - 2 * layers
    # Of the first bits, two for each layer and the one above, only the last two can be other than zero, and are.
    tops = words >> np.maximum(shifts, 0).astype(np.uint64)
    for number in np.flatnonzero((tops == 0) | (tops > 3) | (shifts < 0)).tolist():
        key = keys[number]
        if key_layer(key) != layers[number]:
            raise _bad_tree(f"key {key!r} of layer {key_layer(key)} stands on layer {layers[number]}")


def _in_order(pieces: list[_Piece], layers: Sequence[int]) -> Leaves:
    """Put the leaves in the tree's order, which must be that of their keys."""
    counts, has_left, has_right = (np.concatenate([piece[column] for piece in pieces]) for column in range(3))
    places = _places(counts, has_left, has_right, layers)
    order = np.empty(len(places), np.int64)
    order[places] = np.arange(len(places))
    keys = pa.concat_arrays([piece.keys for piece in pieces]).take(pa.array(order))
    cids = np.concatenate([piece.cids for piece in pieces])
    pieces.clear()
    ascending = pc.less(keys[:-1], keys[1:]) if len(keys) else pa.array([], pa.bool_())
    if ascending.false_count:
        after = ascending.index(False).as_py()
        raise _bad_tree(f"key {keys[after + 1].as_py()!r} stands after {keys[after].as_py()!r}")
    return Leaves(keys, cids[order])


def _places(counts: Numbers, has_left: Flags, has_right: Flags, layers: Sequence[int]) -> Numbers:
    """Return the place of each key in the order of the whole tree.

    Nodes are in order layer by layer, `layers` says how many each has, and so every node but the top is the next
    node's next child. A key stands behind those of its node before it, those of the subtrees before it in its node,
    and whatever is before its node. So the sizes of subtrees are summed from below, and then places told from above.
    """
    nodes = np.repeat(np.arange(len(counts)), counts)
    last = np.cumsum(counts)
    first = last - counts
    lefts = np.cumsum(has_left)
    rights = np.concatenate([[0], np.cumsum(has_right)])
    # How many children there are before those of a node, after them, and before the one that may follow a key.
    children_before, children_after = lefts - has_left + rights[first], lefts + rights[last]
    children_before_key = lefts[nodes] + rights[:-1]

    # Of children, less than the top by one: their node, and that node's keys before them.
    parents, keys_before = np.empty(len(counts) - 1, np.int64), np.zeros(len(counts) - 1, np.int64)
    parents[children_before[has_left]] = np.flatnonzero(has_left)
    parents[children_before_key[has_right]] = nodes[has_right]
    numbers = np.arange(len(nodes)) - first[nodes]
    keys_before[children_before_key[has_right]] = numbers[has_right] + 1

    ends = [0, *np.cumsum(layers).tolist()]
    sizes = counts.copy()
    for first_node, end, below in zip(ends[-3::-1], ends[-2:0:-1], ends[:1:-1], strict=True):
        before = np.concatenate([[0], np.cumsum(sizes[end:below])])
        own = slice(first_node, end)
        sizes[own] += before[children_after[own] - end + 1] - before[children_before[own] - end + 1]
    # Keys at or below the children before each child, of all layers; only differences within a node matter.
    before = np.concatenate([[0], np.cumsum(sizes[1:])])
    offsets = np.zeros(len(counts), np.int64)
    for end, below in pairwise(ends[1:]):
        children = slice(end - 1, below - 1)
        starts = offsets[parents[children]] + keys_before[children] + before[children]
        offsets[end:below] = starts - before[children_before[end:below]]
    places: Numbers = offsets[nodes] + numbers + before[children_before_key]
    return places


def _bad_tree(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, detail)


def _too_large(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TOO_LARGE, detail)
