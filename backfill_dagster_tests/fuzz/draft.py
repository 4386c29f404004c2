"""A repository taken apart, to be changed anywhere and put together again with every hash and the signature right.

What a mutation changes at one stage (records, tree, commit, file) is built upon by the next, so that the file gets
past all hashes and the signature, and is judged by what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from backfill_dagster_tests.fuzz.loose_cbor import encode
from backfill_dagster_tests.repos.forge import (
    P256_ORDER,
    REV,
    K256Signer,
    Link,
    P256Signer,
    car_header,
    cid_of,
    entry,
    frame,
    layer_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster_tests.repos.forge import Signer

Bend: TypeAlias = Callable[[dict[str, Any]], object]


class SteadyP256Signer(P256Signer):
    """Makes the same signature of the same message each time, so that a mutation can be made again."""

    def sign(self, message: bytes) -> bytes:
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        r, s = decode_dss_signature(self._private.sign(message, algorithm))
        return r.to_bytes(32) + min(s, P256_ORDER - s).to_bytes(32)


SIGNERS: tuple[Signer, ...] = (K256Signer(b"\x46" * 32), SteadyP256Signer(b"\x47" * 32))


@dataclass(eq=False)
class Entry:
    """One entry of a node, any of its parts of any type; `bend` makes something else of its map."""

    prefix: Any
    rest: Any
    value: Any
    tree: Any
    bend: Bend | None = None

    def fields(self, put: Callable[[Any], Any]) -> object:
        fields = {"p": self.prefix, "k": self.rest, "v": self.value, "t": put(self.tree)}
        return self.bend(fields) if self.bend else fields


@dataclass(eq=False)
class Node:
    """One node, with the nodes below it in place of links to them; `codec` is what links to it say it is."""

    left: Any
    entries: list[Entry]
    bend: Bend | None = None
    codec: int = 0x71

    def fields(self, put: Callable[[Any], Any]) -> object:
        fields = {"l": put(self.left), "e": [entry.fields(put) for entry in self.entries]}
        return self.bend(fields) if self.bend else fields


@dataclass
class Draft:
    """The parts, each None until it is first made out of those before it."""

    did: str
    signer: Signer
    records: dict[bytes, bytes]
    # Keys whose record is linked to as raw bytes; keys whose record is left out of the file.
    raw: set[bytes] = field(default_factory=set)
    lost: set[bytes] = field(default_factory=set)
    _tree: Node | None = None
    _blocks: dict[bytes, bytes] = field(default_factory=dict)
    _commit: dict[str, Any] | None = None
    commit_block: bytes | None = None
    _sections: list[bytes] | None = None
    header: bytes | None = None

    @property
    def tree(self) -> Node:
        if self._tree is None:
            leaves = {key: self._cid(key, block) for key, block in self.records.items()}
            self._tree = tree_of(leaves)
            self._blocks |= {
                leaves[key]: block for key, block in self.records.items() if key not in self.lost
            }
        return self._tree

    @tree.setter
    def tree(self, top: Node) -> None:
        self._tree = top

    @property
    def record_links(self) -> list[Link]:
        return [self._cid(key, block) for key, block in self.records.items()]

    def _cid(self, key: bytes, block: bytes) -> Link:
        return cid_of(block, 0x55 if key in self.raw else 0x71)

    @property
    def commit(self) -> dict[str, Any]:
        """The commit's fields without a signature."""
        if self._commit is None:
            data = self._put(self.tree)
            self._commit = {"did": self.did, "version": 3, "data": data, "rev": REV, "prev": None}
        return self._commit

    @commit.setter
    def commit(self, fields: dict[str, Any]) -> None:
        self._commit = fields

    def _put(self, node: Any) -> Any:
        """Write a node and all below it; whatever is no node is what it is."""
        if not isinstance(node, Node):
            return node
        # Hundreds of levels are among the mutations: the left edge is gone down by a loop.
        spine = [node]
        while isinstance(spine[-1].left, Node):
            spine.append(spine[-1].left)
        link: Any = spine[-1].left
        while spine:
            top = spine.pop()
            block = encode(Node(link, top.entries, top.bend).fields(self._put))
            link = cid_of(block, top.codec)
            self._blocks[link] = block
        return link

    def sign(self) -> bytes:
        """Return the commit's block, signed if nothing else was put in its place."""
        if self.commit_block is None:
            self.commit_block = encode(self.commit | {"sig": self.signer.sign(encode(self.commit))})
        return self.commit_block

    @property
    def root(self) -> Link:
        return cid_of(self.sign())

    @property
    def sections(self) -> list[bytes]:
        """The file's sections, the commit first."""
        if self._sections is None:
            blocks = {self.root: self.sign(), **self._blocks}
            self._sections = [frame(cid, block) for cid, block in blocks.items()]
        return self._sections

    @sections.setter
    def sections(self, sections: list[bytes]) -> None:
        self._sections = sections

    def car(self) -> bytes:
        sections = self.sections
        return (car_header([self.root]) if self.header is None else self.header) + b"".join(sections)


# The same keys come back in most mutations.
_layer_of = lru_cache(maxsize=20_000)(layer_of)


def tree_of(leaves: dict[bytes, Link], elsewhere: dict[bytes, int] | None = None) -> Node:
    """Return the one tree that holds these leaves, or one that has some of them on other layers."""
    layers = {key: _layer_of(key) for key in leaves} | (elsewhere or {})

    def build(keys: Sequence[bytes], layer: int) -> Node | None:
        if not keys:
            return None
        here = [place for place, key in enumerate(keys) if layers[key] == layer]
        cuts = [*here, len(keys)]
        node = Node(build(keys[: cuts[0]], layer - 1), [])
        before = b""
        for place, cut in zip(here, cuts[1:], strict=True):
            key = keys[place]
            node.entries.append(entry_of(key, leaves[key], build(keys[place + 1 : cut], layer - 1), before))
            before = key
        return node

    return build(sorted(leaves), max(layers.values(), default=0)) or Node(None, [])


def entry_of(key: bytes, value: object, tree: object, before: bytes) -> Entry:
    """Return the entry of a key behind the key `before`."""
    fields = entry(key, b"", previous=before)
    return Entry(fields["p"], fields["k"], value, tree)
