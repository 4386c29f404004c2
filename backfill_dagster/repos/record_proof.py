"""Proof that an account has one record, or that it has no such record: the answer of `com.atproto.sync.getRecord`.

The answer is a CAR with the signed commit, the nodes of the tree on the way from its root to the record's key, and the
record, if there is one. A tree is a function of its contents (https://atproto.com/specs/repository#mst-structure), so
that a key can stand in one place only: a node on that way that has the layer of the key, and not the key, proves that
it is nowhere. Nothing is proven of the rest of the tree, whose nodes are not here.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.repos.car import index_car
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.limits import RECORD_PROOF_LIMITS
from backfill_dagster.repos.mst import MAX_LAYER, key_layer
from backfill_dagster.repos.mst_node import decode_node
from backfill_dagster.repos.verify import read_commit

if TYPE_CHECKING:
    from backfill_dagster.repos.asked import RecordPath
    from backfill_dagster.repos.car import CarIndex
    from backfill_dagster.repos.limits import RepoLimits
    from backfill_dagster.repos.mst_node import Node
    from backfill_dagster.repos.verify import Claim, Header


class FoundRecord(NamedTuple):
    """A record's CID (36 bytes), and where in the CAR its block begins and ends."""

    cid: bytes
    start: int
    end: int


class RecordProver:
    """Checks proofs of records of one account; a commit that several have in common is checked once."""

    def __init__(
        self, claim: Claim, *, check_signature: bool = True, limits: RepoLimits = RECORD_PROOF_LIMITS
    ) -> None:
        self._claim = claim
        self._check_signature = check_signature
        self._limits = limits
        self._commits: dict[bytes, tuple[Header, bytes]] = {}

    def prove(self, car: bytes, path: RecordPath) -> tuple[Header, FoundRecord | None]:
        """Return the commit that an answer is of, and the record at this path; None if it is proven absent.

        Raises RepoRejectedError with any fault.
        """
        limits = self._limits
        index = index_car(car, max_bytes=limits.max_car_bytes, max_blocks=limits.max_blocks)
        span = index.span(index.root)
        known = self._commits.get(index.root)
        if known is None:
            known = read_commit(car, span, index.root, self._claim, self._check_signature, limits)
            self._commits[index.root] = known
        header, tree = known
        cid = _find_value(car, index, tree, f"{path.collection}/{path.rkey}".encode(), limits)
        return header, None if cid is None else FoundRecord(cid, *index.span(cid))


class _Place(NamedTuple):
    """Where a node must belong: its layer, None for the top of a tree; and the keys before and after all of its own."""

    layer: int | None
    before: bytes
    after: bytes | None


def _find_value(car: bytes, index: CarIndex, root: bytes, path: bytes, limits: RepoLimits) -> bytes | None:
    """Go down from the root to a key; return its value, None if it is proven that there is no such key."""
    own_layer = key_layer(path)
    link, place = root, _Place(None, b"", None)
    while True:
        try:
            node = _read_node(car, index, link, limits)
        except RepoRejectedError as error:
            # Some servers stop at the layer of the key, others go on as long as there is a subtree.
            if error.fault is RepoFault.MISSING_BLOCK and place.layer is not None and place.layer < own_layer:
                return None
            raise
        layer = _check_place(node, place, limits)
        after = bisect_left(node.keys, path)
        if node.keys[after : after + 1] == [path]:
            return node.values[after]
        child = node.left if after == 0 else dict(node.trees).get(after)
        if child is None:
            return None
        if layer == 0:
            raise _bad_tree("a subtree stands below the lowest layer")
        link = child
        place = _Place(
            layer - 1,
            node.keys[after - 1] if after else place.before,
            node.keys[after] if after < len(node.keys) else place.after,
        )


def _read_node(car: bytes, index: CarIndex, link: bytes, limits: RepoLimits) -> Node:
    if len(link) != CID_BYTES or not link.startswith(DAG_CBOR_PREFIX):
        raise _bad_tree(f"a link to a node is of an unsupported kind: {link.hex()[:80]}")
    start, end = index.span(link)
    if end - start > limits.max_node_bytes:
        raise _too_large(f"a node has {end - start} bytes of at most {limits.max_node_bytes}")
    return decode_node(car[start:end], max_entries=limits.max_node_entries)


def _check_place(node: Node, place: _Place, limits: RepoLimits) -> int:
    """Check that a node's keys belong on its layer, and between those around it; return the layer."""
    if not node.keys:
        if place.layer is None and node.left is not None:
            raise _bad_tree("the top node has no keys, only a subtree")
        if place.layer is not None and node.left is None:
            raise _bad_tree("a node below the top is empty")
        return place.layer or 0
    layer = key_layer(node.keys[0]) if place.layer is None else place.layer
    if layer > min(limits.max_depth, MAX_LAYER):
        raise _too_large(f"the tree has {layer} layers of at most {limits.max_depth}")
    for key in node.keys:
        if key_layer(key) != layer:
            raise _bad_tree(f"key {key!r} stands on layer {layer}, which is not its own")
    if node.keys[0] <= place.before or (place.after is not None and node.keys[-1] >= place.after):
        raise _bad_tree(f"the keys from {node.keys[0]!r} on stand between others than they must")
    return layer


def _bad_tree(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, detail)


def _too_large(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TOO_LARGE, detail)
