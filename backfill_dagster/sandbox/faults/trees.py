"""Trees that break the rules of the tree, or keep them and are too large."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from backfill_dagster.sandbox.faults.additions import own_block, own_keys
from backfill_dagster.sandbox.faults.distortion import Distortion
from backfill_dagster.sandbox.mst_writer import Block, Entry, Leaf, Tree, leaves_of, tree_of, write_node

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.sandbox.dag_cbor import Link
    from backfill_dagster.sandbox.repo import Draft, RepoFile


def _with_keys(draft: Draft, keys: Iterable[bytes]) -> Draft:
    block = own_block()
    return replace(draft, records={**draft.records, **dict.fromkeys(keys, block)})


def _leaves(draft: Draft) -> list[Leaf]:
    return leaves_of((key, block.cid) for key, block in draft.records.items())


@dataclass(frozen=True, slots=True)
class WrongKeyOrder(Distortion):
    """Two neighbouring keys of a node have changed places, or one stands twice, or the order is broken between nodes.

    In the last case each node by itself is sound: a key stands below the key that it should stand before.
    """

    how: Literal["swapped", "repeated", "between_nodes"] = "swapped"

    def draft(self, draft: Draft) -> Draft:
        """Add the keys that it is about."""
        return _with_keys(draft, self._keys())

    def tree(self, tree: Tree, draft: Draft) -> Tree:
        """Build it again in the wrong order."""
        del tree
        leaves = _leaves(draft)
        place = next(place for place, leaf in enumerate(leaves) if leaf.key == self._keys()[0])
        first, second = leaves[place : place + 2]
        leaves[place : place + 2] = [first, first, second] if self.how == "repeated" else [second, first]
        return tree_of(leaves)

    def _keys(self) -> tuple[bytes, ...]:
        low = own_keys(0, 2)
        if self.how != "between_nodes":
            return low
        return low[0], next(key for key in own_keys(1, 4) if key > low[0])


@dataclass(frozen=True, slots=True)
class WrongLayer(Distortion):
    """A key stands on a layer that is not its own; far up, it hangs above a chain of nodes without keys."""

    layer: int = 1

    def draft(self, draft: Draft) -> Draft:
        """Add the key, and another that keeps to its layer: of one key alone a tree does not tell the layer."""
        return _with_keys(draft, [self._key(), own_keys(0, 2)[1]])

    def tree(self, tree: Tree, draft: Draft) -> Tree:
        """Build it again with the key on the wrong layer."""
        del tree
        key = self._key()
        return tree_of(
            [leaf._replace(layer=self.layer) if leaf.key == key else leaf for leaf in _leaves(draft)]
        )

    def _key(self) -> bytes:
        return own_keys(0 if self.layer else 1, 1)[0]


@dataclass(frozen=True, slots=True)
class KeyTooLong(Distortion):
    """A key of the tree has so many bytes. The official software refuses more than 1,024."""

    size: int = 2000

    def draft(self, draft: Draft) -> Draft:
        """Add the key."""
        return _with_keys(draft, [b"com.example.fault/".ljust(self.size, b"k")])


@dataclass(frozen=True, slots=True)
class WideNode(Distortion):
    """So many keys stand in one node, each longer by `padding` bytes than it need be.

    All is by the rules: the keys were searched for until enough belonged on the lowest layer.
    """

    entries: int = 100_000
    padding: int = 0

    def draft(self, draft: Draft) -> Draft:
        """Add the keys."""
        return _with_keys(draft, own_keys(0, self.entries, self.padding))


@dataclass(frozen=True, slots=True)
class TreeCycle(Distortion):
    """The lowest node leads back to the top. Its hash cannot be right, so only one who checks none is caught."""

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Give the lowest node's name to another."""
        del draft
        lowest = file.tree.nodes[0]
        cyclic = Block(lowest.cid, write_node(file.tree.root, []).data)
        return replace(file, blocks=[cyclic if block == lowest else block for block in file.blocks])


@dataclass(frozen=True, slots=True)
class TreeBlowUp(Distortion):
    """A node of each level leads to one and the same below it, again and again, all hashes being right.

    The file is small, and one who walks it without looking at the order of keys visits `width` to the power of
    `levels` nodes.
    """

    levels: int = 5
    width: int = 64

    def tree(self, tree: Tree, draft: Draft) -> Tree:
        """Build another in its place."""
        del tree, draft
        nodes: list[Block] = []
        below: Link | None = None
        for layer in range(self.levels):
            entries = [Entry(key, own_block().cid, below) for key in own_keys(layer, self.width)]
            nodes.append(write_node(below, entries))
            below = nodes[-1].cid
        return Tree(nodes[-1].cid, nodes)

    def file(self, file: RepoFile, draft: Draft) -> RepoFile:
        """Add the record that all keys lead to."""
        del draft
        return replace(file, blocks=[*file.blocks, own_block()])
