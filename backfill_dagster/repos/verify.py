"""Proof that a downloaded CAR is the whole repository of one account, and signed by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backfill_dagster.repos.car import index_car
from backfill_dagster.repos.commit import Commit, parse_commit
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey, verify_signature
from backfill_dagster.repos.limits import RepoLimits as RepoLimits  # offered here too, as an argument's type
from backfill_dagster.repos.mst import walk_tree
from backfill_dagster.repos.paths import split_paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from backfill_dagster.repos.car_bytes import CarBytes


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedRepo:
    """A repository that holds: one entry per record in each of four parallel columns, in the order of the tree.

    `signed_by` says whether a current or an earlier key of the account made the signature, `signing_key` which
    (`did:key:...`); both are None if it was not asked for. `starts` and `ends` are the records' blocks, as positions
    in the bytes that were verified; they have the hash of their CID, which is the 36 bytes before the start, but were
    not decoded, and may be of any size.
    """

    did: str
    rev: str | None
    commit_cid: bytes
    commit_block: bytes
    signed_by: Literal["current", "previous"] | None
    signing_key: str | None
    collections: pa.DictionaryArray
    rkeys: pa.LargeStringArray
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


_DEFAULT_LIMITS = RepoLimits()


def verify_repo(
    car: CarBytes,
    *,
    did: str,
    keys: Sequence[SigningKey],
    previous_keys: Sequence[SigningKey] = (),
    check_signature: bool = True,
    limits: RepoLimits = _DEFAULT_LIMITS,
) -> VerifiedRepo:
    """Prove that `car` holds the whole repository of `did`: every block's hash, the tree, and the signature.

    A signature by one of `previous_keys` counts as well: an account that moved keeps its last commit until it
    writes again. With `check_signature` off, all but the signature is checked.

    No more than a part of a large file is in memory at once.

    Raises RepoRejectedError with any fault.
    """
    index = index_car(car, max_bytes=limits.max_car_bytes, max_blocks=limits.max_blocks)
    root = index.root
    start, end = index.span(root)
    if end - start > limits.max_commit_bytes:
        raise RepoRejectedError(
            RepoFault.TOO_LARGE, f"the commit has {end - start} bytes of at most {limits.max_commit_bytes}"
        )
    commit_block = car[start:end]
    commit = parse_commit(commit_block)
    if commit.did != did:
        raise RepoRejectedError(RepoFault.WRONG_DID, f"the repository is that of {commit.did[:80]!r}")
    signed_by, signing_key = _find_signer(commit, keys, previous_keys) if check_signature else (None, None)
    tree = walk_tree(car, index, commit.data, limits, index.find)
    starts, ends = index.starts, index.ends
    # Of a large repository, most of the memory.
    del index
    leaves = tree.leaves()
    del tree
    starts, ends = starts[leaves.records], ends[leaves.records]
    # One block can stand under any number of keys, so that a small file could stand for any number of bytes.
    if int((ends - starts).sum()) > limits.max_records_bytes:
        raise RepoRejectedError(
            RepoFault.TOO_LARGE, f"the records have more than {limits.max_records_bytes} bytes"
        )
    paths = split_paths(leaves.keys)
    return VerifiedRepo(
        did=did,
        rev=commit.rev,
        commit_cid=root,
        commit_block=commit_block,
        signed_by=signed_by,
        signing_key=signing_key,
        collections=paths.collections,
        rkeys=paths.rkeys,
        starts=starts,
        ends=ends,
    )


def _find_signer(
    commit: Commit, keys: Sequence[SigningKey], previous_keys: Sequence[SigningKey]
) -> tuple[Literal["current", "previous"], str]:
    for key in keys:
        if verify_signature(key, commit.unsigned, commit.signature):
            return "current", key.did_key
    for key in previous_keys:
        if verify_signature(key, commit.unsigned, commit.signature):
            return "previous", key.did_key
    tried = len(keys) + len(previous_keys)
    raise RepoRejectedError(RepoFault.BAD_SIGNATURE, f"none of {tried} keys made the commit's signature")
