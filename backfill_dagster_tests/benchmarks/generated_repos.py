"""Repositories to measure with: generated from a seed, valid, signed, their blocks in shuffled order.

What stands in them is what the sandbox's ordinary accounts write: about 58 % likes, 17 % posts (facets, embeds,
languages; a third of them replies), 14 % follows, 8 % reposts, 2 % blocks and a little of other lexicons.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from unittest import mock

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox import ordinary_records
from backfill_dagster.sandbox.dag_cbor import Link, cid_of, encode
from backfill_dagster.sandbox.keys import SigningKey, did_key
from backfill_dagster.sandbox.mst_writer import Block
from backfill_dagster.sandbox.ordinary_records import OrdinaryRecords
from backfill_dagster.sandbox.population import Account, Population, Role
from backfill_dagster.sandbox.repo import Draft, record_block, write_repo
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.written import Written, instant_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

SEED = 7
# Accounts that the records refer to; those behind them are free to be generated as repositories.
_NEIGHBOURS = 300
# Bounds of the kinds' shares where an account's anchors, which are posts, are too few to count.
_MIX = {"_LIKES": 0.58, "_POSTS": 0.75, "_FOLLOWS": 0.89, "_REPOSTS": 0.97, "_BLOCKS": 0.99}
# Of 400 accounts with this median, as a log-normal distribution with sigma 1 has them: about 128,000 records.
_SMALL_MEDIAN = 202

WINDOW: tuple[datetime, datetime] = (
    instant_of(ordinary_records.WINDOW_START),
    instant_of(ordinary_records.WINDOW_END),
)
"""The period in which most records of a generated repository are dated, and all if it is asked for."""

REV = tid(ordinary_records.WINDOW_END, 1)
_REV_BEFORE = tid(ordinary_records.WINDOW_END, 0)


@dataclass(frozen=True, slots=True)
class SignedRepo:
    """A repository on disk: whose it is, the key that it is signed with (`did:key:...`), its file, its records."""

    did: str
    key: str
    car: Path
    records: int


@cache
def large_repo(folder: Path, records: int, *, in_window: bool = True) -> SignedRepo:
    """Write one repository of so many records, dated within `WINDOW` or, a quarter of them, over 30 months."""
    account, written = large_account(records, in_window=in_window)
    return _write(folder / f"{records}{'' if in_window else '-months'}.car", account, written)


def large_account(records: int, *, in_window: bool = True) -> tuple[Account, Iterator[Written]]:
    """Return an account of so many records, and these as they are generated."""
    population = Population(SandboxSettings(seed=SEED, accounts=_NEIGHBOURS + 100, hosts=3, records=300))
    account = replace(next(_ordinary(population)), size=records)
    return account, _written(OrdinaryRecords(population), account, in_window=in_window, mix=_MIX)


@cache
def small_repos(folder: Path, accounts: int, *, median: int = _SMALL_MEDIAN) -> tuple[SignedRepo, ...]:
    """Write the repositories of so many accounts, of log-normal sizes, in an order of chance; dated in `WINDOW`."""
    # One account in twenty is peculiar, and those are left out.
    settings = SandboxSettings(seed=SEED, accounts=_NEIGHBOURS + accounts * 11 // 10, hosts=3, records=median)
    population = Population(settings)
    chosen = [account for account, _ in zip(_ordinary(population), range(accounts), strict=False)]
    ordinary = OrdinaryRecords(population)
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(
        _write(folder / f"{account.index}.car", account, _written(ordinary, account, in_window=True, mix={}))
        for account in chosen
    )


def record_blocks(sizes: Sequence[int]) -> Iterator[dict[bytes, Block]]:
    """Generate the records of as many ordinary accounts, of so many records each, as blocks by their paths."""
    settings = SandboxSettings(
        seed=SEED, accounts=_NEIGHBOURS + 30 + len(sizes) * 11 // 10, hosts=3, records=300
    )
    population = Population(settings)
    ordinary = OrdinaryRecords(population)
    for account, size in zip(_ordinary(population), sizes, strict=False):
        yield _blocks(ordinary.of(replace(account, size=size)))


def made_up_did(number: int) -> str:
    """Return the DID of an account that exists nowhere."""
    digest = sha256(f"benchmark {number}".encode()).digest()
    return f"did:plc:{base64.b32encode(digest[:15]).decode().lower()}"


def signed_commit(did: str, data: Link, key: SigningKey) -> Block:
    """Write and sign the commit of a tree."""
    fields = {"did": did, "version": 3, "data": data, "rev": REV, "prev": None}
    signed = encode({**fields, "sig": key.sign(encode(fields))})
    return Block(cid_of(signed), signed)


def _ordinary(population: Population) -> Iterator[Account]:
    return (account for account in population.accounts[_NEIGHBOURS:] if account.role is Role.NORMAL)


def _written(
    ordinary: OrdinaryRecords, account: Account, *, in_window: bool, mix: dict[str, float]
) -> Iterator[Written]:
    changes: dict[str, Any] = {**mix, **({"_IN_WINDOW": 1.0} if in_window else {})}
    with mock.patch.multiple(ordinary_records, **changes):
        yield from ordinary.of(account)


def _write(car: Path, account: Account, written: Iterator[Written]) -> SignedRepo:
    blocks = _blocks(written)
    file = write_repo(Draft(account, REV, _REV_BEFORE, account.current_key, blocks))
    car.write_bytes(file.write())
    return SignedRepo(account.did, did_key(account.current_key), car, len(blocks))


def _blocks(written: Iterator[Written]) -> dict[bytes, Block]:
    return {f"{record.collection}/{record.rkey}".encode(): record_block(record) for record in written}
