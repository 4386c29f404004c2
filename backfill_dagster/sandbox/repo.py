"""Repositories of sandbox accounts: tree, signed commit, CAR (https://atproto.com/specs/repository)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

from backfill_dagster.sandbox.car_writer import write_blocks, write_header
from backfill_dagster.sandbox.dag_cbor import Link, blob_cid, cid_of, encode
from backfill_dagster.sandbox.mst_writer import Block, Tree, build_tree
from backfill_dagster.sandbox.odd_records import odd_records
from backfill_dagster.sandbox.ordinary_records import OrdinaryRecords
from backfill_dagster.sandbox.written import Defect, Written

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backfill_dagster.sandbox.account_state import AccountState
    from backfill_dagster.sandbox.faults.distortion import Distortion
    from backfill_dagster.sandbox.keys import SigningKey
    from backfill_dagster.sandbox.population import Account, Population


@dataclass(frozen=True, slots=True)
class Draft:
    """What a repository is written from: `records` are blocks by their keys in the tree, in no order.

    `rev_before` is a revision before `rev`.
    """

    account: Account
    rev: str
    rev_before: str
    key: SigningKey
    records: Mapping[bytes, Block]


@dataclass(frozen=True, slots=True)
class RepoFile:
    """The parts of a CAR: its header with what stands before it, and all blocks in their order.

    Among the blocks are `commit` and those of `tree`.
    """

    header: bytes
    commit: Block
    tree: Tree
    blocks: list[Block]

    def write(self) -> bytes:
        """Put the parts together."""
        return self.header + write_blocks(self.blocks)


@dataclass(frozen=True, slots=True)
class Repo:
    """One account's repository as its server exports it."""

    did: str
    rev: str
    commit: Link
    car: bytes

    @property
    def header(self) -> bytes:
        """A CAR of no blocks: what a server sends to one who has this revision already."""
        return write_header(self.commit)


class Repos:
    """Writes the repositories of one population, each by itself and only when it is asked for."""

    def __init__(self, population: Population) -> None:
        self._ordinary = OrdinaryRecords(population)
        self._first_paths = lru_cache(maxsize=256)(self._find_first_paths)

    def records(self, state: AccountState) -> Iterator[Written]:
        """Generate an account's records, in no order."""
        changes = state.changes
        for record in self._first_records(state.account):
            if (record.collection, record.rkey) not in changes:
                yield record
        yield from (record for record in changes.values() if record is not None)

    def was_first(self, account: Account, path: tuple[str, str]) -> bool:
        """Say whether an account had a record of this collection and key in the beginning."""
        return path in self._first_paths(account)

    def build(self, state: AccountState, distortions: Sequence[Distortion] = ()) -> Repo:
        """Write an account's repository; equal states give equal bytes."""
        file = self.build_file(state, distortions)
        return Repo(state.did, state.rev, file.commit.cid, file.write())

    def build_file(self, state: AccountState, distortions: Sequence[Distortion] = ()) -> RepoFile:
        """Write it, and leave its parts apart."""
        records: dict[bytes, Block] = {}
        for record in self.records(state):
            records[f"{record.collection}/{record.rkey}".encode()] = record_block(record)
        writes = state.writes
        draft = Draft(state.account, state.rev, state.rev_of(writes - 1), state.key(state.repo_key), records)
        return write_repo(draft, distortions)

    def _first_records(self, account: Account) -> Iterator[Written]:
        yield from self._ordinary.of(account)
        yield from odd_records(account)

    def _find_first_paths(self, account: Account) -> frozenset[tuple[str, str]]:
        return frozenset((record.collection, record.rkey) for record in self._first_records(account))


def write_repo(draft: Draft, distortions: Sequence[Distortion] = ()) -> RepoFile:
    """Write a repository, and let each distortion have its way at each step."""
    for distortion in distortions:
        draft = distortion.draft(draft)
    tree = build_tree((key, block.cid) for key, block in draft.records.items())
    for distortion in distortions:
        tree = distortion.tree(tree, draft)
    commit = _sign(draft, tree.root, distortions)
    blocks = [commit, *tree.nodes, *{block.cid: block for block in draft.records.values()}.values()]
    # A server gives blocks in the order of its database, which is none.
    Random(f"sandbox export {draft.account.seed} {draft.account.did}").shuffle(blocks)
    file = RepoFile(write_header(commit.cid), commit, tree, blocks)
    for distortion in distortions:
        file = distortion.file(file, draft)
    return file


def record_block(record: Written) -> Block:
    """Write one record; under the codec of blobs if that is its defect."""
    data = encode(record.value)
    if record.defect is Defect.RAW_CODEC:
        return Block(blob_cid(sha256(data).digest()), data)
    return Block(cid_of(data), data)


def _sign(draft: Draft, root: Link, distortions: Sequence[Distortion]) -> Block:
    """Write the commit of a tree, signed with the key that the account held at its last write."""
    unsigned: dict[str, Any] = {
        "did": draft.account.did,
        "version": 3,
        "data": root,
        "rev": draft.rev,
        "prev": None,
    }
    for distortion in distortions:
        unsigned = distortion.commit(unsigned)
    signature = draft.key.sign(encode(unsigned))
    for distortion in distortions:
        signature = distortion.signature(signature, draft)
    data = encode({**unsigned, "sig": signature})
    return Block(cid_of(data), data)
