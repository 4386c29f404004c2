"""Many nodes of the tree at once: the same demands as on one, in a fraction of the time.

Each node is decoded by itself. What `mst_node.decode_node` finds by writing the node again in its only form is found
here from the lengths of its parts: they say where each part of a node would stand if it were written in that form.
A link stands at the place of every link, and the node ends where it should. Nothing in it is then longer than it has
to be, since all that could be shorter is a link that is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import libipld
import numpy as np

from backfill_dagster.repos.car_bytes import bytes_at
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.mst_node import MAX_KEY_BYTES, NODE_LEVELS, decode_node
from backfill_dagster.repos.nesting import SMALL_BLOCK_BYTES, nests_deeper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Numbers: TypeAlias = "NDArray[np.int64]"
Flags: TypeAlias = "NDArray[np.bool_]"

_NULL_BYTES = 1
# Tag 42, the head of its byte string, and the byte that stands before the CID.
_LINK_HEAD = b"\xd8\x2a\x58\x25\x00"
_LINK_BYTES = len(_LINK_HEAD) + CID_BYTES
# The name of a field of one letter.
_NAME_BYTES = 2


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes in order, as columns.

    Per node: how many keys it has, and whether there is a subtree before them. Per key: its length, its value's CID,
    36 bytes a row, and whether a subtree follows it. `text` are all keys together.
    """

    counts: Numbers
    has_left: Flags
    keys: list[bytes]
    text: bytes
    key_bytes: Numbers
    values: NDArray[np.uint8]
    has_right: Flags


@dataclass(slots=True)
class NodeBatch:
    """Nodes on their way: blocks, and what a decoder made of them, which is to be checked."""

    max_entries: int
    blocks: list[bytes] = field(default_factory=list)
    arrays: list[list[dict[str, Any]]] = field(default_factory=list)
    lefts: list[bytes | None] = field(default_factory=list)

    def add(self, blocks: Sequence[bytes], links: list[bytes], counts: list[int]) -> None:
        """Decode nodes; add the CIDs of their subtrees from left to right, and how many each node has.

        Raises RepoRejectedError: bad_tree, too_large.
        """
        self.blocks += blocks
        first = len(self.arrays)
        try:
            if any(len(block) > SMALL_BLOCK_BYTES and nests_deeper(block, NODE_LEVELS) for block in blocks):
                self._refuse()
            for block in blocks:
                node = libipld.decode_dag_cbor(block)
                self.arrays.append(node["e"])
                self.lefts.append(node["l"])
                if len(node) != 2:
                    self._refuse()
            before = found = len(links)
            for left, entries in zip(self.lefts[first:], self.arrays[first:], strict=True):
                if left is not None:
                    links.append(left)
                links += [entry["t"] for entry in entries if entry["t"] is not None]
                counts.append(len(links) - found)
                found = len(links)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            self._refuse()
        new = links[before:]
        if not (set(map(type, new)) <= {bytes} and set(map(len, new)) <= {CID_BYTES}):
            self._refuse()

    def first_keys(self) -> list[bytes | None]:
        """Return the first key of each node, None for one without any. Raises RepoRejectedError: bad_tree."""
        keys = [entries[0].get("k") if entries else None for entries in self.arrays]
        if not set(map(type, keys)) <= {bytes, type(None)}:
            self._refuse()
        return keys

    def take(self) -> Nodes:
        """Return the nodes, and forget them, when all is checked that can be seen from each alone.

        That is canonical encoding, prefixes, and the order of keys. Raises RepoRejectedError: bad_tree, too_large.
        """
        nodes = self._checked()
        if nodes is None:
            self._refuse()
        self.blocks, self.arrays, self.lefts = [], [], []
        return nodes

    def _refuse(self) -> NoReturn:
        """Raise the error of the first node that is not what it must be."""
        for block in self.blocks:
            decode_node(block, max_entries=self.max_entries)
        raise AssertionError("a node is refused that holds")

    def _checked(self) -> Nodes | None:
        try:
            entries = list(chain.from_iterable(self.arrays))
            suffixes = [entry["k"] for entry in entries]
            shared = [entry["p"] for entry in entries]
            has_right = np.array([entry["t"] is not None for entry in entries], np.bool_)
        except (LookupError, TypeError):
            return None
        # What a link is, and that there is a value, the places of links tell.
        are_fields = (
            set(map(type, self.arrays)) <= {list}
            and set(map(len, entries)) <= {4}
            and set(map(type, suffixes)) <= {bytes}
            and set(map(type, shared)) <= {int}
            and min(shared, default=0) >= 0
            and max(shared, default=0) <= MAX_KEY_BYTES
            and max(map(len, self.arrays), default=0) <= self.max_entries
        )
        if not are_fields:
            return None
        counts, prefix_bytes, suffix_bytes = (
            _lengths(self.arrays),
            np.array(shared, np.int64),
            _lengths(suffixes),
        )
        has_left = np.array([left is not None for left in self.lefts], np.bool_)
        keys = _whole_keys(shared, suffixes)
        text = b"".join(keys)
        key_bytes = prefix_bytes + suffix_bytes
        if not _are_in_order(text, counts, prefix_bytes, key_bytes):
            return None
        values = _find_values(self.blocks, counts, has_left, prefix_bytes, suffix_bytes, has_right)
        return None if values is None else Nodes(counts, has_left, keys, text, key_bytes, values, has_right)


def _whole_keys(shared: Sequence[int], suffixes: Sequence[bytes]) -> list[bytes]:
    keys: list[bytes] = []
    key = b""
    for prefix, suffix in zip(shared, suffixes, strict=True):
        key = key[:prefix] + suffix
        keys.append(key)
    return keys


def _are_in_order(text: bytes, counts: Numbers, prefix_bytes: Numbers, key_bytes: Numbers) -> bool:
    """Tell whether no key is too long, all share what they can with the one before, and come after it."""
    if not len(key_bytes):
        return True
    after = key_bytes.cumsum()
    # Before a node's first key there is none to share bytes with.
    bytes_before = np.zeros_like(key_bytes)
    bytes_before[1:] = key_bytes[:-1]
    bytes_before[(counts.cumsum() - counts)[counts > 0]] = 0
    if (prefix_bytes > bytes_before).any() or key_bytes.max() > MAX_KEY_BYTES:
        return False
    # Where a key parts from the one before it, its byte must be the greater: then it comes after it, and shares as
    # much as it can. It has such a byte, which is also so of the first one, if its suffix is not empty.
    if (prefix_bytes >= key_bytes).any():
        return False
    [parting] = (prefix_bytes < bytes_before).nonzero()
    prefixes = prefix_bytes[parting]
    letters = np.frombuffer(text, np.uint8)
    ends = after[parting - 1]
    return bool((letters[ends + prefixes] > letters[ends - bytes_before[parting] + prefixes]).all())


def _find_values(
    blocks: Sequence[bytes],
    counts: Numbers,
    has_left: Flags,
    prefix_bytes: Numbers,
    suffix_bytes: Numbers,
    has_right: Flags,
) -> NDArray[np.uint8] | None:
    """Return the CIDs of values; None unless each block is the one form of what was read from it."""
    entry_bytes = (
        1
        + (_NAME_BYTES + _head_bytes(suffix_bytes) + suffix_bytes)
        + (_NAME_BYTES + _head_bytes(prefix_bytes))
        + (_NAME_BYTES + np.where(has_right, _LINK_BYTES, _NULL_BYTES))
        + (_NAME_BYTES + _LINK_BYTES)
    )
    before = np.zeros(len(entry_bytes) + 1, np.int64)
    entry_bytes.cumsum(out=before[1:])
    last = counts.cumsum()
    first = last - counts
    head_bytes = 1 + _NAME_BYTES + _head_bytes(counts)
    left_bytes = _NAME_BYTES + np.where(has_left, _LINK_BYTES, _NULL_BYTES)
    block_bytes = _lengths(blocks)
    if (head_bytes + before[last] - before[first] + left_bytes != block_bytes).any():
        return None
    block_ends = block_bytes.cumsum()
    values = (block_ends - block_bytes + head_bytes - before[first]).repeat(counts) + before[1:]
    rights = values[has_right] - (_NAME_BYTES + _LINK_BYTES)
    lefts = block_ends[has_left]
    text = b"".join(blocks)
    links = [(b"v", values), (b"t", rights), (b"l", lefts)]
    heads = [b"\x61" + name + _LINK_HEAD for name, _ in links]
    ends = np.concatenate([ends for _, ends in links])
    width = len(heads[0])
    found = bytes_at(text, ends - (CID_BYTES + width), width)
    if found.tobytes() != b"".join(head * len(some) for head, (_, some) in zip(heads, links, strict=True)):
        return None
    return bytes_at(text, values - CID_BYTES, CID_BYTES)


def _head_bytes(arguments: Numbers) -> Numbers:
    """Return the length of the shortest heads of CBOR items with these arguments, below 65536."""
    return 1 + (arguments > 23).astype(np.int64) + (arguments > 255)


def _lengths(values: Sequence[Sequence[object]]) -> Numbers:
    return np.fromiter(map(len, values), np.int64, len(values))
