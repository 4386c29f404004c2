"""Repositories from CAR files that were not made here, as many copies of each as make up a measurable amount.

Each copy is that of another made-up account: the blocks are the file's, but for a commit that names this account
and is signed by it. So the copies can stand in one study, and every proof is made of them as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cbrrr import decode_dag_cbor, encode_dag_cbor

from backfill_dagster.repos.faults import RepoRejectedError
from backfill_dagster.repos.keys import SigningKey as PublicKey
from backfill_dagster.repos.varint import read_varint
from backfill_dagster.repos.verify import verify_repo
from backfill_dagster.sandbox.car_writer import write_blocks, write_header
from backfill_dagster.sandbox.dag_cbor import Link, cid_of
from backfill_dagster.sandbox.keys import Curve, derive_key, did_key
from backfill_dagster.sandbox.mst_writer import Block
from backfill_dagster_tests.benchmarks.generated_repos import SignedRepo, made_up_did
from backfill_dagster_tests.benchmarks.measure import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORDS = 20_000
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


def _count(repo: SignedRepo, car: Path) -> int:
    try:
        proven = verify_repo(repo.car.read_bytes(), did=repo.did, keys=[PublicKey.from_did_key(repo.key)])
    except RepoRejectedError as error:
        raise UnusableCarError(f"{car.name} is no whole repository ({error})") from None
    return len(proven.rkeys)


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
