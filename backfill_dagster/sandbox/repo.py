"""Repositories of sandbox accounts: tree, signed commit, CAR (https://atproto.com/specs/repository)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.car_writer import write_car
from backfill_dagster.sandbox.dag_cbor import Link, blob_cid, cid_of, encode
from backfill_dagster.sandbox.mst_writer import Block, build_tree
from backfill_dagster.sandbox.odd_records import odd_records
from backfill_dagster.sandbox.ordinary_records import OrdinaryRecords
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.written import Defect, Written, microseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.sandbox.population import Account, Population

_FIRST_REV = microseconds(datetime(2025, 6, 2, tzinfo=UTC))


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
        return write_car(self.commit, ())


class Repos:
    """Writes the repositories of one population, each by itself and only when it is asked for."""

    def __init__(self, population: Population) -> None:
        self._ordinary = OrdinaryRecords(population)

    def records(self, account: Account) -> Iterator[Written]:
        """Generate an account's records, in no order."""
        yield from self._ordinary.of(account)
        yield from odd_records(account)

    def build(self, account: Account) -> Repo:
        """Write an account's repository; equal accounts give equal bytes."""
        entries: list[tuple[bytes, Link]] = []
        blocks: dict[Link, Block] = {}
        for record in self.records(account):
            block = record_block(record)
            entries.append((f"{record.collection}/{record.rkey}".encode(), block.cid))
            blocks[block.cid] = block
        root, nodes = build_tree(entries)
        commit = sign_commit(account, root)
        exported = [commit, *nodes, *blocks.values()]
        # A server gives blocks in the order of its database, which is none.
        Random(f"sandbox export {account.seed} {account.did}").shuffle(exported)
        return Repo(account.did, repo_rev(account), commit.cid, write_car(commit.cid, exported))


def record_block(record: Written) -> Block:
    """Write one record; under the codec of blobs if that is its defect."""
    data = encode(record.value)
    if record.defect is Defect.RAW_CODEC:
        return Block(blob_cid(sha256(data).digest()), data)
    return Block(cid_of(data), data)


def repo_rev(account: Account) -> str:
    """Name an account's revision: the time of its last write, later than all that ordinary accounts write."""
    digest = sha256(f"sandbox rev {account.seed} {account.did}".encode()).digest()
    return tid(_FIRST_REV + int.from_bytes(digest[:5]), digest[5])


def sign_commit(account: Account, root: Link) -> Block:
    """Write the commit of a tree, signed with the key that its account held at its last write."""
    unsigned = {"did": account.did, "version": 3, "data": root, "rev": repo_rev(account), "prev": None}
    signature = account.repo_key.sign(encode(unsigned))
    data = encode({**unsigned, "sig": signature})
    return Block(cid_of(data), data)
