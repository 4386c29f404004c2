"""Repository paths, `collection/rkey`: the keys of the tree, taken apart.

https://atproto.com/specs/repository#repository-paths
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.repos.faults import RepoFault, RepoRejectedError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Paths(NamedTuple):
    """Paths as parallel columns. The entries of one collection are the same object, not copies."""

    collections: list[str]
    rkeys: list[str]


def split_paths(keys: Sequence[bytes]) -> Paths:
    """Take the keys of a tree, strictly ascending, apart at their first slash.

    Whether a path names a collection and a record key is not asked here: one that does not costs its own record,
    which whoever reads the records rejects, and not the repository, whose tree is whole all the same. A key
    without a slash is a collection with an empty record key.

    Raises RepoRejectedError (bad_tree) for a key that is not UTF-8, which no path can be.
    """
    paths = Paths([], [])
    start = 0
    while start < len(keys):
        name, slash, _ = keys[start].partition(b"/")
        # Keys with one beginning stand together, and "0" is the character after "/".
        end = bisect_left(keys, name + b"0", start) if slash else start + 1
        skip = len(name) + 1
        try:
            collection = name.decode()
            paths.rkeys.extend([key[skip:].decode() for key in keys[start:end]])
        except UnicodeDecodeError as error:
            raise RepoRejectedError(
                RepoFault.BAD_TREE, f"a key is not UTF-8: {error.object[:200]!r}"
            ) from None
        paths.collections.extend([collection] * (end - start))
        start = end
    return paths
