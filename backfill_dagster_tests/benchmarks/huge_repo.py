"""One repository of a gigabyte, written to disk piece by piece: what is too much for a process that keeps objects.

Its records are those of a smaller repository again and again, each with a time and a key of its own, so that no two
blocks are the same.
"""

from __future__ import annotations

from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.repos.varint import read_varint
from backfill_dagster.sandbox.car_writer import write_blocks, write_header
from backfill_dagster.sandbox.dag_cbor import Link, cid_of
from backfill_dagster.sandbox.keys import did_key
from backfill_dagster.sandbox.mst_writer import Block, build_tree
from backfill_dagster.sandbox.ordinary_records import WINDOW_END, WINDOW_START
from backfill_dagster.sandbox.repo import record_block
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.written import PROFILE, iso_milliseconds
from backfill_dagster_tests.benchmarks.generated_repos import SEED, SignedRepo, large_account, signed_commit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill_dagster.sandbox.written import Written

RECORDS = 2_800_000
_CONTENTS = 40_000
_CLOCK = 22
_CREATED = b"icreatedAtx\x18"  # the name, and the head of a text of 24 bytes
_CREATED_BYTES = 24
# Blocks are dealt to so many files and shuffled within each, so that a hundredth is in memory at once.
_DEALS = 128


class _Content(NamedTuple):
    """A record of the smaller repository, cut where its time stands."""

    collection: str
    before: bytes
    after: bytes


def huge_repo(folder: Path, records: int = RECORDS) -> SignedRepo:
    """Write a repository of so many records; 360 bytes of the file for each. Takes about 2 GB and two minutes."""
    account, written = large_account(_CONTENTS)
    rng = Random(f"huge {SEED}")
    leaves: list[tuple[bytes, Link]] = []
    deals = [folder / f"deal-{number}" for number in range(_DEALS)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in deals]
        contents = list(_contents(written))
        for key, block in _records(contents, records, rng):
            leaves.append((key, block.cid))
            rng.choice(files).write(write_blocks([block]))
        tree = build_tree(leaves)
        leaves.clear()
        commit = signed_commit(account.did, tree.root, account.current_key)
        for block in (commit, *tree.nodes):
            rng.choice(files).write(write_blocks([block]))
    car = folder / f"{records}.car"
    with car.open("wb") as file:
        file.write(write_header(commit.cid))
        for deal in deals:
            sections = list(_sections(deal.read_bytes()))
            rng.shuffle(sections)
            file.writelines(sections)
            deal.unlink()
    return SignedRepo(account.did, did_key(account.current_key), car, records)


def _contents(written: Iterator[Written]) -> Iterator[_Content]:
    for record in written:
        data = record_block(record).data
        # The few whose time is written in another form are left out, as is the profile, of which there is one.
        place = data.rfind(_CREATED) + len(_CREATED)
        if place >= len(_CREATED) and record.collection != PROFILE:
            yield _Content(record.collection, data[:place], data[place + _CREATED_BYTES :])


def _records(contents: list[_Content], count: int, rng: Random) -> Iterator[tuple[bytes, Block]]:
    """Generate records with their keys in the tree, evenly over the window of the study."""
    step = (WINDOW_END - WINDOW_START) / count
    for number in range(count):
        collection, before, after = rng.choice(contents)
        # Of the step only a half is left to chance, so that no two records share a millisecond.
        created = WINDOW_START + int(step * (number + rng.random() / 2))
        data = b"".join((before, iso_milliseconds(created).encode(), after))
        yield f"{collection}/{tid(created, _CLOCK)}".encode(), Block(cid_of(data), data)


def _sections(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        length, position = read_varint(content, start, len(content))
        yield content[start : position + length]
        start = position + length
