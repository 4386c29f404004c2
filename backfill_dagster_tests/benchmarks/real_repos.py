"""Repositories from CAR files that were not made here, repeated until they make up a measurable amount.

As copies, each of which is another made-up account's: the blocks are the file's, but for a commit that names this
account and is signed by it. So the copies can stand in one study, and every proof is made of them as well. Or grown
to one repository, in which each record stands many times, every time with a key and a date of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from cbrrr import decode_dag_cbor, encode_dag_cbor

from backfill_dagster.repos.faults import RepoRejectedError
from backfill_dagster.repos.keys import SigningKey as PublicKey
from backfill_dagster.repos.varint import read_varint
from backfill_dagster.repos.verify import VerifiedRepo, verify_repo
from backfill_dagster.sandbox.car_writer import write_blocks, write_header
from backfill_dagster.sandbox.dag_cbor import Link, cid_of
from backfill_dagster.sandbox.keys import Curve, derive_key, did_key
from backfill_dagster.sandbox.mst_writer import Block, build_tree
from backfill_dagster.sandbox.tid import tid
from backfill_dagster_tests.benchmarks.generated_repos import SEED, SignedRepo, made_up_did, signed_commit
from backfill_dagster_tests.benchmarks.measure import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORDS = 20_000
# When the first record of a grown repository was written; each of the others a second after the one before.
_FIRST = datetime(2024, 10, 1, tzinfo=UTC)
_CID_BYTES = 36


class UnusableCarError(Exception):
    """A CAR that is no whole repository, or one without records; says which."""


def shared_cars() -> list[Path]:
    """Return the real CAR files beside the checkout, if there are any."""
    return sorted((ROOT.parent / "shared" / "cars").glob("*.car"))


def repeated(folder: Path, car: Path, records: int = RECORDS) -> list[SignedRepo]:
    """Write as many copies of a repository as have so many records, and at least one.

    Raises UnusableCarError.
    """
    content = car.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    first = _copy(folder, content, 0)
    number = _count(first, car)
    if not number:
        raise UnusableCarError(f"{car.name} holds no records")
    copies = range(-(-records // number))
    repos = [first, *(_copy(folder, content, copy) for copy in copies[1:])]
    return [SignedRepo(repo.did, repo.key, repo.car, number) for repo in repos]


def grown(folder: Path, car: Path, records: int = RECORDS) -> SignedRepo:
    """Write one repository of so many records, which are those of the file in turn but for their keys and dates.

    Raises UnusableCarError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = _values(_copy(folder, car.read_bytes(), 0), car)
    if not values:
        raise UnusableCarError(f"{car.name} holds no records")
    blocks: dict[bytes, Block] = {}
    for number in range(records):
        collection, value = values[number % len(values)]
        # The SDK reads a block once, however many keys it stands under; so none may be another's equal.
        written = _FIRST + timedelta(seconds=number)
        data = encode_dag_cbor({**value, "createdAt": f"{written:%Y-%m-%dT%H:%M:%S}.000Z"})
        rkey = tid(1_000_000 * int(written.timestamp()), 0)
        blocks[f"{collection}/{rkey}".encode()] = Block(cid_of(data), data)
    did = made_up_did(0)
    key = derive_key(Curve.K256, did)
    tree = build_tree((path, block.cid) for path, block in blocks.items())
    commit = signed_commit(did, tree.root, key)
    listed = [commit, *tree.nodes, *blocks.values()]
    Random(SEED).shuffle(listed)
    path = folder / "grown.car"
    path.write_bytes(write_header(commit.cid) + write_blocks(listed))
    return SignedRepo(did, did_key(key), path, records)


def _values(repo: SignedRepo, car: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the collection and the content of every record that is a map."""
    content, proven = repo.car.read_bytes(), _verify(repo, car)
    values = []
    positions = zip(proven.starts.tolist(), proven.ends.tolist(), strict=True)
    for collection, (start, end) in zip(proven.collections.to_pylist(), positions, strict=True):
        try:
            value: Any = decode_dag_cbor(content[start:end])
        except ValueError:
            continue
        if isinstance(value, dict):
            values.append((collection, value))
    return values


def _count(repo: SignedRepo, car: Path) -> int:
    return len(_verify(repo, car).rkeys)


def _verify(repo: SignedRepo, car: Path) -> VerifiedRepo:
    try:
        return verify_repo(repo.car.read_bytes(), did=repo.did, keys=[PublicKey.from_did_key(repo.key)])
    except RepoRejectedError as error:
        raise UnusableCarError(f"{car.name} is no whole repository ({error})") from None


def _copy(folder: Path, content: bytes, number: int) -> SignedRepo:
    length, start = read_varint(content, 0, len(content))
    header: Any = decode_dag_cbor(content[start : start + length])
    root = header["roots"][0].cid_bytes
    did = made_up_did(number)
    key = derive_key(Curve.K256, did)
    path = folder / f"{number}.car"
    blocks = list(_blocks(content, start + length))
    [commit] = {data for cid, data in blocks if cid == root}
    fields: Any = decode_dag_cbor(commit)
    unsigned = {name: value for name, value in fields.items() if name != "sig"} | {"did": did}
    signed = encode_dag_cbor({**unsigned, "sig": key.sign(encode_dag_cbor(unsigned))})
    own = Block(cid_of(signed), signed)
    path.write_bytes(
        write_header(own.cid) + write_blocks(own if block.cid == root else block for block in blocks)
    )
    return SignedRepo(did, did_key(key), path, 0)


def _blocks(content: bytes, start: int) -> Iterator[Block]:
    while start < len(content):
        length, position = read_varint(content, start, len(content))
        start = position + length
        yield Block(Link(content[position : position + _CID_BYTES]), content[position + _CID_BYTES : start])
