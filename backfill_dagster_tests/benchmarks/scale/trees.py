"""Repositories of the simulated network: trees that are written once, and a commit for each account, signed anew.

Nothing in a tree tells whose it is: accounts of the same size share one, and differ by their commits. So a server
gives away repositories that are whole and authentic, each its own account's, without writing 383,598 trees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.car_writer import write_blocks, write_header
from backfill_dagster.sandbox.mst_writer import build_tree
from backfill_dagster_tests.benchmarks.generated_repos import record_blocks, signed_commit
from backfill_dagster_tests.benchmarks.scale.frame import SIZES, did_of, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.sandbox.dag_cbor import Link

# Sizes of real repositories, in records, are taken to be log-normal: half of them below 130 records (50 kB), and 2,300
# on average, so that one in a thousand has more than 200,000 (80 MB).
MEDIAN_RECORDS = 130
SIGMA = 2.4
# A profile, and one record besides.
_LEAST_RECORDS = 2


@dataclass(frozen=True, slots=True)
class WrittenTree:
    """A tree without its commit: its root, and the sections of a CAR with its nodes and records."""

    root: Link
    sections: bytes
    records: int


def real_sizes() -> list[float]:
    """Return the sizes in records, least first: each is the mean of its 250th of the distribution, so none is lost."""
    normal, mean = NormalDist(), MEDIAN_RECORDS * math.exp(SIGMA**2 / 2)
    bounds = [-math.inf, *(normal.inv_cdf(place / SIZES) for place in range(1, SIZES)), math.inf]
    # Up to a bound, a log-normal variable has this share of its mean.
    below = [normal.cdf(bound - SIGMA) if math.isfinite(bound) else float(bound > 0) for bound in bounds]
    return [mean * SIZES * (after - before) for before, after in pairwise(below)]


def written_sizes(shrink: float) -> list[int]:
    """Return how many records are written for each size, where one stands for `shrink` of a real repository."""
    return [max(_LEAST_RECORDS, round(size / shrink)) for size in real_sizes()]


def write_trees(shrink: float) -> list[WrittenTree]:
    """Write a tree of each size."""
    trees = []
    for place, blocks in enumerate(record_blocks(written_sizes(shrink))):
        tree = build_tree((key, block.cid) for key, block in blocks.items())
        sections = [*tree.nodes, *{block.cid: block for block in blocks.values()}.values()]
        Random(f"scale {place}").shuffle(sections)
        trees.append(WrittenTree(tree.root, write_blocks(sections), len(blocks)))
    return trees


def repo_of(number: int, trees: Sequence[WrittenTree]) -> bytes:
    """Write the repository of an account as a CAR."""
    tree = trees[number % SIZES]
    commit = signed_commit(did_of(number), tree.root, key_of(number))
    return write_header(commit.cid) + write_blocks([commit]) + tree.sections
