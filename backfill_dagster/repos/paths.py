"""Repository paths, `collection/rkey`: the keys of the tree, taken apart.

https://atproto.com/specs/repository#repository-paths
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from backfill_dagster.repos.faults import RepoFault, RepoRejectedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_SLASH = ord("/")
# Bounds what taking them apart needs for a while.
_KEYS_AT_ONCE = 65_536


class Paths(NamedTuple):
    """Paths as parallel columns of text; the names of collections are kept once."""

    collections: pa.DictionaryArray
    rkeys: pa.LargeStringArray


def split_paths(keys: pa.LargeBinaryArray) -> Paths:
    """Take the keys of a tree apart at their first slash.

    Whether a path names a collection and a record key is not asked here: one that does not costs its own record,
    which whoever reads the records rejects, and not the repository, whose tree is whole all the same. A key
    without a slash is a collection with an empty record key.

    Raises RepoRejectedError (bad_tree) for a key that is not UTF-8, which no path can be.
    """
    if len(keys) <= _KEYS_AT_ONCE:
        return _split(keys)
    some = [_split(keys[first : first + _KEYS_AT_ONCE]) for first in range(0, len(keys), _KEYS_AT_ONCE)]
    collections = pa.chunked_array([paths.collections for paths in some]).unify_dictionaries()
    return Paths(pa.concat_arrays(collections.chunks), pa.concat_arrays([paths.rkeys for paths in some]))


def _split(keys: pa.LargeBinaryArray) -> Paths:
    try:
        keys.cast(pa.large_string())
    except pa.ArrowInvalid:
        other = _first_other(keys.to_pylist())
        raise RepoRejectedError(RepoFault.BAD_TREE, f"a key is not UTF-8: {other!r}") from None
    _, offsets, data = keys.buffers()
    ends = np.frombuffer(offsets, np.int64)[keys.offset : keys.offset + len(keys) + 1]
    text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data else np.zeros(0, np.uint8)
    starts, ends = ends[:-1] - ends[0], ends[1:] - ends[0]
    slashes = np.append(np.flatnonzero(text == _SLASH), len(text))
    cuts = np.minimum(slashes[slashes.searchsorted(starts)], ends)
    rkeys = np.minimum(cuts + 1, ends)
    lengths = np.stack([cuts - starts, rkeys - cuts, ends - rkeys], axis=1)
    return Paths(_parts(text, lengths, 0).dictionary_encode(), _parts(text, lengths, 2))


def _parts(text: NDArray[np.uint8], lengths: NDArray[np.int64], part: int) -> pa.LargeStringArray:
    """Return one part of each row of a text: its rows and their parts follow each other and have these lengths."""
    taken = np.zeros(lengths.shape, np.bool_)
    taken[:, part] = True
    chosen = text[np.repeat(taken.ravel(), lengths.ravel())]
    offsets = np.zeros(len(lengths) + 1, np.int64)
    lengths[:, part].cumsum(out=offsets[1:])
    return pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(chosen))


def _first_other(keys: Iterable[bytes]) -> bytes | None:
    """Return the beginning of the first key that is no text."""
    for key in keys:
        try:
            key.decode()
        except UnicodeDecodeError:
            return key[:200]
    return None
