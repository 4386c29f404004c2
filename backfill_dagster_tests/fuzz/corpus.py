"""The repositories that everything is mutated from: exported from official PDS software, nobody here wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from backfill_dagster_tests.fuzz.reader import UnlawfulError, read_car, read_repo
from backfill_dagster_tests.repos.exported import WHOLE_REPOS, exported_repo

# Lacks most of its blocks: it is a diff. Mutations of it must be refused like itself.
PARTIAL_REPO = "partial-since"


@dataclass(frozen=True)
class Seed:
    """A file, the account it should be of, and what it says: the blocks of its records by key, if it is whole."""

    name: str
    car: bytes
    did: str
    did_key: str
    records: dict[bytes, bytes]
    # Where each section begins, and the end of the file.
    boundaries: list[int]


@cache
def seeds() -> tuple[Seed, ...]:
    """Return every seed, the smallest first."""
    found = [_seed(name) for name in (*WHOLE_REPOS, PARTIAL_REPO)]
    return tuple(sorted(found, key=lambda seed: len(seed.car)))


@cache
def whole_seeds() -> tuple[Seed, ...]:
    """Return the seeds that have records."""
    return tuple(seed for seed in seeds() if seed.records)


def _seed(name: str) -> Seed:
    exported = exported_repo(name)
    try:
        leaves = read_repo(exported.car, exported.did, exported.signing_key).leaves
    except UnlawfulError:
        leaves = {}
    records = {key: block for key, (_, block) in leaves.items()}
    return Seed(name, exported.car, exported.did, exported.signing_key, records, _boundaries(exported.car))


def _boundaries(car: bytes) -> list[int]:
    # Sections of these files have lengths of one or two bytes, the header has one.
    found = [1 + car[0]]
    while found[-1] < len(car):
        position = found[-1]
        low, high = car[position], car[position + 1]
        length, digits = (low, 1) if low < 0x80 else (low - 0x80 + (high << 7), 2)
        found.append(position + digits + length)
    assert found[-1] == len(car)
    assert len(found) - 1 == read_car(car)[2]
    return found
