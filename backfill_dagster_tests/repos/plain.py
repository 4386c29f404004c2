"""What the verifier found, as plain Python values that can be compared and looked at."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backfill_dagster.repos.car import CarIndex
from backfill_dagster.repos.car_bytes import CarBytes
from backfill_dagster.repos.limits import RepoLimits
from backfill_dagster.repos.mst import walk_trees
from backfill_dagster.repos.verify import VerifiedRepo

Span = tuple[int, int]


@dataclass(frozen=True)
class PlainRepo:
    did: str
    rev: str | None
    commit_cid: bytes
    commit_block: bytes
    signed_by: str | None
    signing_key: str | None
    collections: list[str]
    rkeys: list[str]
    cids: list[bytes]
    spans: list[Span]


class PlainLeaves(NamedTuple):
    keys: list[bytes]
    cids: list[bytes]


def plain_repo(repo: VerifiedRepo, content: CarBytes) -> PlainRepo:
    return PlainRepo(
        repo.did,
        repo.rev,
        repo.commit_cid,
        repo.commit_block,
        repo.signed_by,
        repo.signing_key,
        repo.collections.to_pylist(),
        repo.rkeys.to_pylist(),
        [content[start - 36 : start] for start in repo.starts.tolist()],
        list(zip(repo.starts.tolist(), repo.ends.tolist(), strict=True)),
    )


def plain_leaves(content: CarBytes, index: CarIndex, root: bytes, limits: RepoLimits) -> PlainLeaves:
    """Walk a tree whose records need not be there."""
    cids: list[bytes] = []

    def number(some: NDArray[np.uint8], _: NDArray[np.int32]) -> NDArray[np.int32]:
        cids.extend(cid.tobytes() for cid in some)
        return np.arange(len(cids) - len(some), len(cids), dtype=np.int32)

    leaves = walk_trees(content, index, [root], np.zeros(1, np.int32), limits, number).leaves()
    return PlainLeaves(leaves.keys.to_pylist(), [cids[record] for record in leaves.records.tolist()])


def spans_of(index: CarIndex, content: CarBytes) -> dict[bytes, Span]:
    """Where each sound block lies, by its CID."""
    spans = list(zip(index.starts.tolist(), index.ends.tolist(), strict=True))
    # A block that stands in the file several times is found where it is looked up.
    return {cid: index.span(cid) for cid in (content[start - 36 : start] for start, _ in spans)}
