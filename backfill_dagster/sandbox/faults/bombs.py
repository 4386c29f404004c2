"""Small pieces of CBOR that cost a careless decoder its stack or its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from backfill_dagster.sandbox.dag_cbor import Raw, cid_of, head
from backfill_dagster.sandbox.faults.additions import own_post
from backfill_dagster.sandbox.faults.distortion import Distortion
from backfill_dagster.sandbox.mst_writer import Block, Tree
from backfill_dagster.sandbox.written import Defect

if TYPE_CHECKING:
    from backfill_dagster.sandbox.faults.blocks import Part
    from backfill_dagster.sandbox.repo import Draft
    from backfill_dagster.sandbox.written import Written

_MAJORS = {"bytes": 2, "text": 3, "array": 4, "map": 5}

# Sorts after all other fields of a record or a commit, so that what it claims reaches over the block's end.
_FIELD = "z" * 16


@dataclass(frozen=True, slots=True)
class CborBomb(Distortion):
    """A record that comes besides, the tree's top node, or the commit holds a bomb.

    It is `size` arrays inside each other, or claims to be an item of `size` members or bytes and ends there;
    100,000 arrays and 2^40 members, if nothing else is said.
    """

    part: Part = "record"
    kind: Literal["nesting", "array", "map", "text", "bytes"] = "nesting"
    size: int | None = None

    def written(self) -> list[Written]:
        """Return the record."""
        if self.part != "record":
            return []
        return [own_post(Defect.UNDECODABLE, text="a bomb", **{_FIELD: self._bomb()})]

    def tree(self, tree: Tree, draft: Draft) -> Tree:
        """Put a node with the bomb for its entries on top."""
        del draft
        if self.part != "node":
            return tree
        data = b"\xa2\x61e" + self._bomb() + b"\x61l\xf6"
        node = Block(cid_of(data), data)
        return Tree(node.cid, [*tree.nodes, node])

    def commit(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Add a field with the bomb."""
        return {**fields, _FIELD: self._bomb()} if self.part == "commit" else fields

    def _bomb(self) -> Raw:
        if self.kind == "nesting":
            return Raw(b"\x81" * (self.size or 100_000) + b"\x80")
        return Raw(head(_MAJORS[self.kind], self.size or 2**40))
