"""One node of the tree, read with all that its format demands of it.

https://atproto.com/specs/repository#mst-structure
"""

from __future__ import annotations

from typing import NamedTuple

import libipld

from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.nesting import SMALL_BLOCK_BYTES, nests_deeper

# "str.length <= 1024" in the reference implementation; the specification leaves the number open.
MAX_KEY_BYTES = 1024


class Node(NamedTuple):
    """One node: the subtree before its keys, its keys and their values, and the subtrees between and after them.

    Each of `trees` stands behind as many keys as its number says.
    """

    left: bytes | None
    keys: list[bytes]
    values: list[bytes]
    trees: list[tuple[int, bytes]]


def head(major: int, argument: int) -> bytes:
    """Return the one canonical head of a CBOR item; `argument` below 65536."""
    if argument < 24:
        return bytes([major << 5 | argument])
    if argument < 0x100:
        return bytes([major << 5 | 24, argument])
    return bytes([major << 5 | 25]) + argument.to_bytes(2)


# A map, its array of entries, and the map of each.
NODE_LEVELS = 3

# The pieces of an encoded node (CBOR majors: 0 integer, 2 bytes, 4 array), those with a number made in advance.
LINK = b"\xd8\x2a" + head(2, CID_BYTES + 1) + b"\x00"
SUFFIX = [b"\xa4\x61k" + head(2, length) for length in range(MAX_KEY_BYTES + 1)]
SHARED_NO_TREE = [
    b"\x61p" + head(0, length) + b"\x61t\xf6\x61v" + LINK for length in range(MAX_KEY_BYTES + 1)
]
SHARED_TREE = [b"\x61p" + head(0, length) + b"\x61t" + LINK for length in range(MAX_KEY_BYTES + 1)]
VALUE = b"\x61v" + LINK
ENTRIES = b"\xa2\x61e"
LEFT = b"\x61l" + LINK
NO_LEFT = b"\x61l\xf6"
_MAX_ENTRIES = 0xFFFF


def decode_node(block: bytes, *, max_entries: int) -> Node:
    """Read one node and check what can be seen from it alone: canonical encoding, prefixes, order of keys.

    Raises RepoRejectedError: bad_tree, too_large.
    """
    keys: list[bytes] = []
    values: list[bytes] = []
    trees: list[tuple[int, bytes]] = []
    try:
        if len(block) > SMALL_BLOCK_BYTES and nests_deeper(block, NODE_LEVELS):
            raise _bad_tree("a node nests deeper than the format's")
        entries, left = libipld.decode_dag_cbor(block).values()
        if len(entries) > min(max_entries, _MAX_ENTRIES):
            raise _too_large(f"a node has {len(entries)} entries of at most {max_entries}")
        # The decoder gives links and byte strings the same type, and takes numbers in a longer form than the
        # shortest. So what it read is written again, in the only form that a node can have, and compared.
        written = [ENTRIES, head(4, len(entries))]
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
                written += (SUFFIX[len(suffix)], suffix, SHARED_NO_TREE[shared], value)
            else:
                written += (SUFFIX[len(suffix)], suffix, SHARED_TREE[shared], tree, VALUE, value)
                trees.append((len(keys), tree))
        written += (NO_LEFT,) if left is None else (LEFT, left)
        canonical = b"".join(written) == block
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # The decoder refuses with ValueError and RecursionError; the others mean values of another type.
        raise _bad_tree(f"a block is no tree node ({type(error).__name__}: {error!s:.100})") from None
    if not canonical:
        raise _bad_tree("a node has other fields or another encoding than the format's")
    return Node(left, keys, values, trees)


def _bad_tree(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, detail)


def _too_large(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TOO_LARGE, detail)
