"""The Merkle Search Tree: which paths a repository has, and the CID of the record at each.

https://atproto.com/specs/repository#mst-structure. The tree is a function of its contents, so there is one right
shape for it, and here every rule of that shape is checked on the way. The tree is read layer by layer from its top,
each from left to right, so that much can be done at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backfill_dagster.repos.car_bytes import join_rows, slices_of
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.mst_nodes import NodeBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from backfill_dagster.repos.car import CarIndex
    from backfill_dagster.repos.car_bytes import CarBytes
    from backfill_dagster.repos.limits import RepoLimits
    from backfill_dagster.repos.mst_nodes import Flags, Nodes, Numbers

_HASH_BITS = 256
MAX_LAYER = _HASH_BITS // 2 - 1
# Nodes that are looked at together, in number and bytes; they are Python's objects for that while.
_NODES_AT_ONCE = 4096
_BYTES_AT_ONCE = 4 * 2**20
_WORD_BYTES = 8


class Leaves(NamedTuple):
    """Trees' leaves in the order of their keys: key (`collection/rkey`), and a number that stands for its record.

    And how many each tree has.
    """

    keys: pa.LargeBinaryArray
    records: NDArray[np.int32]
    sizes: Numbers


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees whose nodes are sound, each by itself: nodes in pieces, the text of all keys, nodes per layer from the top.

    The nodes of all trees' tops come first, in the order of the trees, then those of the layers below.
    """

    pieces: tuple[_Piece, ...]
    keys: bytearray
    layers: tuple[int, ...]

    def leaves(self) -> Leaves:
        """Put the leaves in the trees' order. Raises RepoRejectedError (bad_tree) if that is not their keys' order."""
        counts, has_left, has_right, trees, key_bytes, records = (
            column[0] if len(self.pieces) == 1 else np.concatenate(column)
            for column in zip(*self.pieces, strict=True)
        )
        order = _tree_order(counts, has_left, has_right, self.layers)
        sizes = np.bincount(trees, counts, self.layers[0] if self.layers else 0).astype(np.int64)
        offsets = np.zeros(len(order) + 1, np.int64)
        key_bytes.cumsum(out=offsets[1:])
        unordered = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(order), [None, pa.py_buffer(offsets), pa.py_buffer(self.keys)]
        )
        keys = unordered.take(pa.array(order))
        ascending = pc.less(keys[:-1], keys[1:]) if len(keys) else pa.array([], pa.bool_())
        if ascending.false_count:
            # The first key of a tree may come before the last one of another.
            for last in np.flatnonzero(~ascending.to_numpy(zero_copy_only=False)).tolist():
                if last + 1 not in sizes.cumsum():
                    raise _bad_tree(f"key {keys[last + 1].as_py()!r} stands after {keys[last].as_py()!r}")
        return Leaves(keys, records[order], sizes)


def key_layer(key: bytes) -> int:
    """Return the layer of the tree that a key belongs on, counted from the bottom."""
    zero_bits = _HASH_BITS - int.from_bytes(hashlib.sha256(key).digest()).bit_length()
    return zero_bits // 2


def walk_trees(
    car: CarBytes,
    index: CarIndex,
    roots: Sequence[bytes],
    cars: NDArray[np.int32],
    limits: RepoLimits,
    find_records: Callable[[NDArray[np.uint8], NDArray[np.int32]], NDArray[np.int32]],
) -> Forest:
    """Read every node of the trees below `roots`, each in the CAR of its number, and check each of them.

    Keys are checked as the tree's format demands, not for being repository paths. Records are not looked at:
    `find_records` makes of their CIDs, 36 bytes a row, and the numbers of their CARs, the numbers that stand for them.
    The limits are those of all trees together.

    Raises RepoRejectedError: bad_tree, missing_block, corrupt_block, too_large; and what `find_records` does.
    """
    walk = _Walk(car, index, limits, find_records, cars)
    links, trees, layers = list(roots), np.arange(len(roots), dtype=np.int32), []
    while links:
        layers.append(len(links))
        links, trees = walk.read_layer(links, trees)
    walk.check()
    return Forest(tuple(walk.pieces), walk.keys, tuple(layers))


class _Walk:
    """Reads the nodes of a tree, layer by layer, and keeps to the limits."""

    def __init__(
        self,
        car: CarBytes,
        index: CarIndex,
        limits: RepoLimits,
        find_records: Callable[[NDArray[np.uint8], NDArray[np.int32]], NDArray[np.int32]],
        cars: NDArray[np.int32],
    ) -> None:
        self._car = car
        self._index = index
        self._limits = limits
        self._find_records = find_records
        self._seen = np.zeros(len(index.starts), np.bool_)
        self._batch = NodeBatch(limits.max_node_entries)
        self._batch_bytes = 0
        # Of the nodes of the batch, in parts: their tree and their layer.
        self._trees: list[NDArray[np.int32]] = []
        self._layers: list[NDArray[np.int32]] = []
        # Per tree, the layer of its top.
        self._tops = np.zeros(len(cars), np.int32)
        self._cars = cars
        self._depth = 0
        self._nodes = 0
        self._checked = 0
        self._records = 0
        self.pieces: list[_Piece] = []
        # Of all keys in the order of the pieces: an array that grows in place takes no second one.
        self.keys = bytearray()

    def read_layer(
        self, links: list[bytes], trees: NDArray[np.int32]
    ) -> tuple[list[bytes], NDArray[np.int32]]:
        """Read the nodes of the next layer below, by their CIDs and trees; return those of the nodes below these."""
        children: list[bytes] = []
        counts: list[int] = []
        for first in range(0, len(links), _NODES_AT_ONCE):
            last = first + _NODES_AT_ONCE
            for blocks, own in self._load(links[first:last], trees[first:last]):
                self._batch.add(blocks, children, counts)
                if not self._depth:
                    self._set_tops(own)
                self._trees.append(own)
                self._layers.append(self._tops[own] - self._depth)
                self._batch_bytes += sum(map(len, blocks))
                if len(self._batch.blocks) >= _NODES_AT_ONCE or self._batch_bytes >= _BYTES_AT_ONCE:
                    self.check()
        below = trees.repeat(counts)
        if (self._tops[below] <= self._depth).any():
            raise _bad_tree("a subtree stands below the lowest layer")
        self._depth += 1
        return children, below

    def _set_tops(self, trees: NDArray[np.int32]) -> None:
        """Note the layers of trees' tops, which are the nodes of the batch: their first keys tell."""
        keys, lefts = self._batch.first_keys(), self._batch.lefts
        for tree, key, left in zip(trees.tolist(), keys[-len(trees) :], lefts[-len(trees) :], strict=True):
            if key is None and left is not None:
                raise _bad_tree("the top node has no keys, only a subtree")
            layer = 0 if key is None else key_layer(key)
            if layer > min(self._limits.max_depth, MAX_LAYER):
                raise _too_large(f"the tree has {layer} layers of at most {self._limits.max_depth}")
            self._tops[tree] = layer

    def _load(
        self, links: Sequence[bytes], trees: NDArray[np.int32]
    ) -> Iterator[tuple[list[bytes], NDArray[np.int32]]]:
        """Yield nodes, none of which was asked for before; several at once, as long as they are small."""
        for link in links:
            if not link.startswith(DAG_CBOR_PREFIX):
                raise _bad_tree(f"a link to a node is of an unsupported kind: {link.hex()[:80]}")
        self._nodes += len(links)
        if self._nodes > self._limits.max_nodes:
            raise _too_large(f"the tree has more than {self._limits.max_nodes} nodes")
        rows = self._index.find(join_rows(links, CID_BYTES), self._cars[trees])
        self._seen[rows] = True
        # Also what keeps the walk finite: a key stands in the tree once, and so does a subtree.
        if np.count_nonzero(self._seen) < self._nodes:
            raise _bad_tree("a subtree stands in two places")
        starts, ends = self._index.starts[rows], self._index.ends[rows]
        sizes = ends - starts
        largest = int(sizes.max())
        if largest > self._limits.max_node_bytes:
            raise _too_large(f"a node has {largest} bytes of at most {self._limits.max_node_bytes}")
        at_once = len(links) if int(sizes.sum()) <= _BYTES_AT_ONCE else max(1, _BYTES_AT_ONCE // largest)
        for first in range(0, len(links), at_once):
            some = slice(first, first + at_once)
            yield slices_of(self._car, starts[some], ends[some]), trees[some]

    def check(self) -> None:
        """Check the nodes of the batch and put them aside as columns."""
        if not self._layers:
            return
        nodes = self._batch.take()
        layers, trees = np.concatenate(self._layers), np.concatenate(self._trees)
        self._layers, self._trees, self._batch_bytes = [], [], 0
        self._count(nodes)
        # Only the top of an empty repository may be empty.
        filled = nodes.has_left | (nodes.counts > 0)
        if not filled[max(0, len(self._tops) - self._checked) :].all():
            raise _bad_tree("a subtree is empty")
        self._checked += len(layers)
        if nodes.keys:
            _check_layers(nodes.keys, layers.repeat(nodes.counts))
        self.pieces.append(
            _Piece(
                nodes.counts.astype(np.int32),
                nodes.has_left,
                nodes.has_right,
                trees,
                nodes.key_bytes.astype(np.int32),
                self._find_records(nodes.values, self._cars[trees].repeat(nodes.counts)),
            )
        )

    def _count(self, nodes: Nodes) -> None:
        self._records += len(nodes.keys)
        self.keys += nodes.text
        if self._records > self._limits.max_records:
            raise _too_large(f"the tree has more than {self._limits.max_records} records")
        if len(self.keys) > self._limits.max_paths_bytes:
            raise _too_large(f"the tree's keys have more than {self._limits.max_paths_bytes} bytes")


class _Piece(NamedTuple):
    """Some of a tree's nodes in the order in which they were read; see `Nodes`."""

    counts: NDArray[np.int32]
    has_left: Flags
    has_right: Flags
    trees: NDArray[np.int32]
    key_bytes: NDArray[np.int32]
    records: NDArray[np.int32]


def _check_layers(keys: Sequence[bytes], layers: NDArray[np.int32]) -> None:
    """Check that each key is on the layer where it belongs: its hash begins with twice as many zero bits."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(key).digest() for key in keys])
    words = np.frombuffer(digests, ">u8")[:: _HASH_BITS // 8 // _WORD_BYTES].astype(np.uint64)
    # Of the first bits, two for each layer and the one above, only the last two can be other than zero, and are.
    # What is shifted by more bits than there are, which a number below zero becomes, is zero.
    tops = words >> (8 * _WORD_BYTES - 2 - 2 * layers).astype(np.uint64)
    for number in ((tops == 0) | (tops > 3)).nonzero()[0].tolist():
        key = keys[number]
        if key_layer(key) != layers[number]:
            raise _bad_tree(f"key {key!r} of layer {key_layer(key)} stands on layer {layers[number]}")


def _tree_order(
    counts: NDArray[np.int32], has_left: Flags, has_right: Flags, layers: Sequence[int]
) -> NDArray[np.int32]:
    """Return the numbers of all keys in the order of the trees.

    Nodes are in order layer by layer, `layers` says how many each has. What a node consists of, keys and children,
    takes the place that the node had in the order of the layers above: there every child was a hole.
    """
    lefts, rights = _sums_before(has_left), _sums_before(has_right)
    ends = _sums_before(counts)
    # Parts of nodes before each node and at last: its keys, and the children before and after them.
    parts_before = ends + lefts + rights[ends]
    parts = np.full(parts_before[-1], -1, np.int32)
    keys = np.arange(ends[-1], dtype=np.int32)
    parts[keys + rights[:-1] + lefts[1:].repeat(counts)] = keys

    order = np.full(layers[0], -1, np.int32)
    first = 0
    for nodes in layers:
        before = parts_before[first : first + nodes + 1]
        holes = order < 0
        widths = np.ones(len(order), np.int32)
        widths[holes] = np.diff(before)
        places = _sums_before(widths)
        filled = np.ones(places[-1], np.bool_)
        kept = places[:-1][~holes]
        filled[kept] = False
        wider = np.empty(places[-1], np.int32)
        wider[kept] = order[~holes]
        wider[filled] = parts[before[0] : before[-1]]
        order = wider
        first += nodes
    return order


def _sums_before(numbers: NDArray[np.int32] | Flags) -> NDArray[np.int32]:
    """Return the sum of all numbers before each, and of all."""
    sums = np.zeros(len(numbers) + 1, np.int32)
    numbers.cumsum(out=sums[1:])
    return sums


def _bad_tree(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, detail)


def _too_large(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TOO_LARGE, detail)
