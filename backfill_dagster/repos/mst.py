"""The Merkle Search Tree: which paths a repository has, and the CID of the record at each.

https://atproto.com/specs/repository#mst-structure. The tree is a function of its contents, so there is one right
shape for it, and here every rule of that shape is checked on the way. The tree is read layer by layer from its top,
each from left to right, so that much can be done at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backfill_dagster.repos.car_bytes import join_rows, slices_of
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.mst_node import decode_node
from backfill_dagster.repos.mst_nodes import NodeBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
    """A tree's leaves in the order of their keys: key (`collection/rkey`), and a number that stands for its record."""

    keys: pa.LargeBinaryArray
    records: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree whose nodes are sound, each by itself: its nodes in pieces, the text of all keys, nodes per layer."""

    pieces: tuple[_Piece, ...]
    keys: bytearray
    layers: tuple[int, ...]

    def leaves(self) -> Leaves:
        """Put the leaves in the tree's order. Raises RepoRejectedError (bad_tree) if that is not their keys' order."""
        counts, has_left, has_right, key_bytes, records = map(np.concatenate, zip(*self.pieces, strict=True))
        places = _places(counts, has_left, has_right, self.layers)
        order = np.empty_like(places)
        order[places] = np.arange(len(places), dtype=np.int32)
        offsets = np.zeros(len(places) + 1, np.int64)
        key_bytes.cumsum(out=offsets[1:])
        unordered = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(places), [None, pa.py_buffer(offsets), pa.py_buffer(self.keys)]
        )
        keys = unordered.take(pa.array(order))
        ascending = pc.less(keys[:-1], keys[1:]) if len(keys) else pa.array([], pa.bool_())
        if ascending.false_count:
            after = ascending.index(False).as_py()
            raise _bad_tree(f"key {keys[after + 1].as_py()!r} stands after {keys[after].as_py()!r}")
        return Leaves(keys, records[order])


def key_layer(key: bytes) -> int:
    """Return the layer of the tree that a key belongs on, counted from the bottom."""
    zero_bits = _HASH_BITS - int.from_bytes(hashlib.sha256(key).digest()).bit_length()
    return zero_bits // 2


def walk_tree(
    car: CarBytes,
    index: CarIndex,
    root: bytes,
    limits: RepoLimits,
    find_records: Callable[[NDArray[np.uint8]], NDArray[np.int32]],
) -> Tree:
    """Read every node of the tree below `root` and check each of them.

    Keys are checked as the tree's format demands, not for being repository paths. Records are not looked at:
    `find_records` makes of their CIDs, 36 bytes a row, the numbers that stand for them.

    Raises RepoRejectedError: bad_tree, missing_block, corrupt_block, too_large; and what `find_records` does.
    """
    walk = _Walk(car, index, limits, find_records)
    links, layers = walk.read_layer([root]), [1]
    while links:
        layers.append(len(links))
        links = walk.read_layer(links)
    walk.check()
    return Tree(tuple(walk.pieces), walk.keys, tuple(layers))


class _Walk:
    """Reads the nodes of a tree, layer by layer, and keeps to the limits."""

    def __init__(
        self,
        car: CarBytes,
        index: CarIndex,
        limits: RepoLimits,
        find_records: Callable[[NDArray[np.uint8]], NDArray[np.int32]],
    ) -> None:
        self._car = car
        self._index = index
        self._limits = limits
        self._find_records = find_records
        self._seen = np.zeros(len(index.starts), np.bool_)
        self._batch = NodeBatch(limits.max_node_entries)
        self._batch_bytes = 0
        # Per node of the batch.
        self._layers: list[int] = []
        self._layer: int | None = None
        self._nodes = 0
        self._records = 0
        self.pieces: list[_Piece] = []
        # Of all keys in the order of the pieces: an array that grows in place takes no second one.
        self.keys = bytearray()

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
        rows = self._index.find(join_rows(links, CID_BYTES))
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
        self.pieces.append(
            _Piece(
                nodes.counts.astype(np.int32),
                nodes.has_left,
                nodes.has_right,
                np.fromiter(map(len, nodes.keys), np.int32, len(nodes.keys)),
                self._find_records(nodes.values),
            )
        )

    def _count(self, nodes: Nodes) -> None:
        self._records += len(nodes.keys)
        self.keys += b"".join(nodes.keys)
        if self._records > self._limits.max_records:
            raise _too_large(f"the tree has more than {self._limits.max_records} records")
        if len(self.keys) > self._limits.max_paths_bytes:
            raise _too_large(f"the tree's keys have more than {self._limits.max_paths_bytes} bytes")


class _Piece(NamedTuple):
    """Some of a tree's nodes in the order in which they were read; see `Nodes`."""

    counts: NDArray[np.int32]
    has_left: Flags
    has_right: Flags
    key_bytes: NDArray[np.int32]
    records: NDArray[np.int32]


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


def _places(
    counts: NDArray[np.int32], has_left: Flags, has_right: Flags, layers: Sequence[int]
) -> NDArray[np.int32]:
    """Return the place of each key in the order of the whole tree.

    Nodes are in order layer by layer, `layers` says how many each has, and so every node but the top is the next
    node's next child. A key stands behind those of its node before it, those of the subtrees before it in its node,
    and whatever is before its node. So the sizes of subtrees are summed from below, and then places told from above.
    """
    nodes = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    last = _sums(counts)
    first = last - counts
    lefts = _sums(has_left)
    rights = _sums_before(has_right)
    # How many children there are before those of a node, after them, and before the one that may follow a key.
    children_before, children_after = lefts - has_left + rights[first], lefts + rights[last]
    children_before_key = lefts[nodes] + rights[:-1]

    # Of children, one less than nodes: their node, and that node's keys before them.
    parents, keys_before = np.zeros((2, len(counts) - 1), np.int32)
    parents[children_before[has_left]] = np.flatnonzero(has_left)
    parents[children_before_key[has_right]] = nodes[has_right]
    numbers = np.arange(len(nodes), dtype=np.int32) - first[nodes]
    keys_before[children_before_key[has_right]] = numbers[has_right] + 1

    ends = [0, *np.cumsum(layers).tolist()]
    sizes = counts.copy()
    for start, end, below in zip(ends[-3::-1], ends[-2:0:-1], ends[:1:-1], strict=True):
        before = _sums_before(sizes[end:below])
        own = slice(start, end)
        sizes[own] += before[children_after[own] - end + 1] - before[children_before[own] - end + 1]
    # Keys at or below the children before each child, of all layers; only differences within a node matter, so that
    # a sum that runs over does no harm.
    before = _sums_before(sizes[1:])
    offsets = np.zeros_like(sizes)
    for end, below in pairwise(ends[1:]):
        children = slice(end - 1, below - 1)
        starts = offsets[parents[children]] + keys_before[children] + before[children]
        offsets[end:below] = starts - before[children_before[end:below]]
    places: NDArray[np.int32] = offsets[nodes] + numbers + before[children_before_key]
    return places


def _sums(numbers: NDArray[np.int32] | Flags) -> NDArray[np.int32]:
    """Return the sum of all numbers up to each."""
    return numbers.cumsum(dtype=np.int32)


def _sums_before(numbers: NDArray[np.int32] | Flags) -> NDArray[np.int32]:
    """Return the sum of all numbers before each, and of all."""
    sums = np.zeros(len(numbers) + 1, np.int32)
    numbers.cumsum(out=sums[1:])
    return sums


def _bad_tree(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, detail)


def _too_large(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TOO_LARGE, detail)
