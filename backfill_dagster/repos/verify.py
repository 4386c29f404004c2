"""Proof that a downloaded CAR is the whole repository of one account, and signed by it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from backfill_dagster.repos.car import index_car, index_cars
from backfill_dagster.repos.car_bytes import join_rows
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.commit import Commit, parse_commit
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey, verify_signature
from backfill_dagster.repos.limits import RepoLimits as RepoLimits  # offered here too, as an argument's type
from backfill_dagster.repos.mst import walk_trees
from backfill_dagster.repos.paths import split_paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from backfill_dagster.repos.car_bytes import CarBytes
    from backfill_dagster.repos.mst import Leaves


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
    claim = Claim(did, keys, previous_keys)
    [repo] = prove(car, claim, check_signature=check_signature, limits=limits).repos()
    return repo


class Claim(NamedTuple):
    """Whose repository a CAR is said to be, and the keys of that account."""

    did: str
    keys: Sequence[SigningKey]
    previous_keys: Sequence[SigningKey] = ()


class Header(NamedTuple):
    """A repository that holds, without its records; see `VerifiedRepo`."""

    did: str
    rev: str | None
    commit_cid: bytes
    commit_block: bytes
    signed_by: Literal["current", "previous"] | None
    signing_key: str | None


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedRepos:
    """Repositories that hold, and all their records together: those of the first, then those of the next.

    `numbers` says which of the CARs that were given they are, `sizes` how many records each has. Positions are those
    in `content`.
    """

    content: CarBytes
    numbers: list[int]
    headers: list[Header]
    sizes: list[int]
    collections: pa.DictionaryArray
    rkeys: pa.LargeStringArray
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def repos(self) -> list[VerifiedRepo]:
        """Return each by itself; positions stay those in `content`."""
        bounds = pairwise([0, *accumulate(self.sizes)])
        return [
            VerifiedRepo(
                *header,
                self.collections[first:last],
                self.rkeys[first:last],
                self.starts[first:last],
                self.ends[first:last],
            )
            for header, (first, last) in zip(self.headers, bounds, strict=True)
        ]


def prove(
    car: CarBytes, claim: Claim, *, check_signature: bool = True, limits: RepoLimits = _DEFAULT_LIMITS
) -> VerifiedRepos:
    """Do what `verify_repo` does, for a result of the same form as `prove_together` has."""
    index = index_car(car, max_bytes=limits.max_car_bytes, max_blocks=limits.max_blocks)
    header, tree = read_commit(car, index.span(index.root), index.root, claim, check_signature, limits)
    forest = walk_trees(car, index, [tree], np.zeros(1, np.int32), limits, index.find)
    starts, ends = index.starts, index.ends
    # Of a large repository the index is most of the memory, and the tree much of the rest.
    del index
    leaves = forest.leaves()
    del forest
    return _with_records(car, [0], [header], leaves, starts, ends, limits)


def prove_together(
    cars: Sequence[bytes],
    claims: Sequence[Claim],
    *,
    check_signature: bool = True,
    limits: RepoLimits = _DEFAULT_LIMITS,
) -> VerifiedRepos | None:
    """Prove several small repositories at once, for far less each. Of those that do not hold, some are left out.

    None if no more can be told than that not all hold, or that they do not keep to the limits of one together.
    What any single one is rejected for, `prove` tells.
    """
    content = b"".join(cars)
    numbers, headers, trees = [], [], []
    try:
        index = index_cars(
            content, list(map(len, cars)), max_bytes=limits.max_car_bytes, max_blocks=limits.max_blocks
        )
        commits = index.find(join_rows(index.roots, CID_BYTES), index.numbers)
        spans = zip(index.starts[commits].tolist(), index.ends[commits].tolist(), strict=True)
        for number, root, span in zip(index.numbers.tolist(), index.roots, spans, strict=True):
            with suppress(RepoRejectedError):
                header, tree = read_commit(content, span, root, claims[number], check_signature, limits)
                numbers.append(number)
                headers.append(header)
                trees.append(tree)
        if not trees:
            return None
        forest = walk_trees(content, index, trees, np.array(numbers, np.int32), limits, index.find)
        return _with_records(content, numbers, headers, forest.leaves(), index.starts, index.ends, limits)
    except RepoRejectedError:
        return None


def read_commit(
    car: CarBytes,
    span: tuple[int, int],
    root: bytes,
    claim: Claim,
    check_signature: bool,
    limits: RepoLimits,
) -> tuple[Header, bytes]:
    """Check the commit at `root`, which lies there in the CAR; return it, and the CID of its tree.

    Raises RepoRejectedError: too_large, bad_commit, wrong_did, bad_signature.
    """
    start, end = span
    if end - start > limits.max_commit_bytes:
        raise RepoRejectedError(
            RepoFault.TOO_LARGE, f"the commit has {end - start} bytes of at most {limits.max_commit_bytes}"
        )
    block = car[start:end]
    commit = parse_commit(block)
    if commit.did != claim.did:
        raise RepoRejectedError(RepoFault.WRONG_DID, f"the repository is that of {commit.did[:80]!r}")
    signed_by, key = (
        _find_signer(commit, claim.keys, claim.previous_keys) if check_signature else (None, None)
    )
    return Header(claim.did, commit.rev, root, block, signed_by, key), commit.data


def _with_records(
    car: CarBytes,
    numbers: list[int],
    headers: list[Header],
    leaves: Leaves,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    limits: RepoLimits,
) -> VerifiedRepos:
    """Put repositories together from their trees' leaves; blocks begin at `starts` and end at `ends`."""
    starts, ends = starts[leaves.records], ends[leaves.records]
    # One block can stand under any number of keys, so that a small file could stand for any number of bytes.
    if int((ends - starts).sum()) > limits.max_records_bytes:
        raise RepoRejectedError(
            RepoFault.TOO_LARGE, f"the records have more than {limits.max_records_bytes} bytes"
        )
    paths = split_paths(leaves.keys)
    return VerifiedRepos(
        car, numbers, headers, leaves.sizes.tolist(), paths.collections, paths.rkeys, starts, ends
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
