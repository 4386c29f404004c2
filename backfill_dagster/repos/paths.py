"""Repository paths, `collection/rkey`: the keys of the tree, taken apart.

https://atproto.com/specs/repository#repository-paths
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.syntax import is_nsid, is_record_key

if TYPE_CHECKING:
    from collections.abc import Sequence


class Paths(NamedTuple):
    """Paths as parallel columns. The entries of one collection are the same object, not copies."""

    collections: list[str]
    rkeys: list[str]


def split_paths(keys: Sequence[bytes]) -> Paths:
    """Take the keys of a tree, strictly ascending, apart.

    Raises RepoRejectedError (bad_tree) for a key that is not a namespaced identifier and a record key.
    """
    paths = Paths([], [])
    start = 0
    while start < len(keys):
        name, slash, _ = keys[start].partition(b"/")
        collection = name.decode("ascii", "replace")
        if not slash or not is_nsid(collection):
            raise _bad_path(keys[start])
        # Keys with one beginning stand together, and "0" is the character after "/".
        end = bisect_left(keys, name + b"0", start)
        skip = len(name) + 1
        for key in keys[start:end]:
            rkey = key[skip:].decode("ascii", "replace")
            if not is_record_key(rkey):
                raise _bad_path(key)
            paths.rkeys.append(rkey)
        paths.collections.extend([collection] * (end - start))
        start = end
    return paths


def _bad_path(key: bytes) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, f"a key is not a repository path: {key[:200]!r}")
