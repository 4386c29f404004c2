"""How large a repository may be: bounds against hostile files, far above what real accounts have."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepoLimits:
    """Upper bounds; a repository beyond any of them is rejected as `too_large`. Bytes, unless named otherwise.

    Real repositories reach about 1 GB and some millions of records. The specification asks for such bounds
    (https://atproto.com/specs/repository#security-considerations): keys can be mined for, so that a tree is as
    deep, or its nodes as wide, as somebody likes. By chance a node of ten million records' tree has some
    60 entries, and the tree 13 layers.
    """

    max_car_bytes: int = 2 * 2**30
    max_blocks: int = 14_000_000
    # Small, because the commit's decoder reserves room for an array as long as it claims to be.
    max_commit_bytes: int = 8 * 2**10
    max_node_bytes: int = 2 * 2**20
    max_node_entries: int = 4096
    max_nodes: int = 4_000_000
    max_depth: int = 64  # layers
    max_records: int = 10_000_000
    # Sums over the records, each of which can refer to the same block, or share all but a byte of its path.
    max_records_bytes: int = 4 * 2**30
    max_paths_bytes: int = 2**30


RECORD_PROOF_LIMITS = RepoLimits(max_car_bytes=8 * 2**20, max_blocks=1024)
"""Of the proof of a single record: the commit, a node for each layer of the tree, and the record."""
