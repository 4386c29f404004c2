"""Who is in the simulated network: accounts by number, and what follows from a number without looking anything up."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, pairwise

from backfill_dagster.sandbox.keys import Curve, SigningKey, derive_key

PLC_HOST = "plc.scale.test"

# The frame that it is modelled on: 383,598 accounts on 340 hosts, of which 80 have 382,073 accounts, and the ten
# largest 19 to 21 thousand each.
FRAME_ACCOUNTS = 383_598
FRAME_HOSTS = 340
_LARGE_HOSTS, _LARGEST_HOSTS = 80, 10
_IN_LARGE, _IN_LARGEST = 382_073, 200_000
# The largest of the ten has so much more than their mean, and the smallest so much less.
_SPREAD_OF_LARGEST = 0.05

SIZES = 250
"""How many sizes of repositories there are. The n-th account has the (n mod 250)-th, so that every host has all."""

_DIGEST_BYTES, _NUMBER_BYTES = 11, 4
_DID = "did:plc:"


class Fate(Enum):
    """What an account's servers say of it; the value is the name of the PDS's error."""

    WHOLE = ""
    NOT_FOUND = "RepoNotFound"
    DEACTIVATED = "RepoDeactivated"
    TAKENDOWN = "RepoTakendown"
    TOMBSTONED = "tombstoned"


# Of each 250 accounts ten, those with the least in them, are gone.
_GONE = [Fate.NOT_FOUND] * 3 + [Fate.DEACTIVATED] * 3 + [Fate.TAKENDOWN] * 2 + [Fate.TOMBSTONED] * 2


@dataclass(frozen=True)
class Frame:
    """Accounts of each host, largest first. Those of one host have consecutive numbers, from 0."""

    hosts: tuple[int, ...]

    @property
    def accounts(self) -> int:
        """Accounts of all hosts together."""
        return sum(self.hosts)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.hosts))

    @cached_property
    def host_names(self) -> tuple[str, ...]:
        """The hosts' names, in their order."""
        return tuple(f"pds{number}.scale.test" for number in range(len(self.hosts)))

    def host_of(self, number: int) -> str:
        """Return the host on which an account lives."""
        return self.host_names[bisect_right(self._ends, number)]


def frame_of(accounts: int, hosts: int = FRAME_HOSTS) -> Frame:
    """Deal accounts out as the real frame has them; each host has one at least. Raises ValueError if that cannot be."""
    if accounts < hosts:
        raise ValueError(f"{accounts} accounts are too few for {hosts} hosts")
    large = min(_LARGE_HOSTS, hosts)
    small = hosts - large
    in_small = max(small, round(accounts * (1 - _IN_LARGE / FRAME_ACCOUNTS))) if small else 0
    in_large = accounts - in_small
    largest = min(_LARGEST_HOSTS, large)
    in_largest = round(in_large * _IN_LARGEST / _IN_LARGE) if large > largest else in_large
    step = 2 * _SPREAD_OF_LARGEST / max(1, largest - 1)
    weights = [1 + _SPREAD_OF_LARGEST - step * rank for rank in range(largest)]
    counts = [
        *_shared_out(in_largest, weights),
        *_shared_out(in_large - in_largest, [1.0] * (large - largest)),
        *_shared_out(in_small, [1.0] * small),
    ]
    return Frame(tuple(counts))


def _shared_out(total: int, weights: list[float]) -> list[int]:
    """Share a number out by weights, largest first: the rounded sums lose none and make none up."""
    whole = sum(weights)
    bounds = [round(total * part / (whole or 1)) for part in accumulate(weights, initial=0.0)]
    return sorted((after - before for before, after in pairwise(bounds)), reverse=True)


def did_of(number: int) -> str:
    """Return the DID of an account; DIDs are in no order of the numbers."""
    digest = sha256(f"scale {number}".encode()).digest()[:_DIGEST_BYTES]
    return _DID + base64.b32encode(digest + number.to_bytes(_NUMBER_BYTES)).decode().lower()


def number_of(did: str) -> int | None:
    """Return the account of a DID; None if it is of none."""
    try:
        number = int.from_bytes(base64.b32decode(did.removeprefix(_DID).upper())[_DIGEST_BYTES:])
    except binascii.Error:
        return None
    return number if number < 2 ** (8 * _NUMBER_BYTES) and did_of(number) == did else None


def key_of(number: int) -> SigningKey:
    """Return the key of an account: each has its own."""
    return derive_key(Curve.K256, f"scale {number}")


def fate_of(number: int) -> Fate:
    """Return what became of an account."""
    place = number % SIZES
    return _GONE[place] if place < len(_GONE) else Fate.WHOLE


def whole_accounts(accounts: int) -> int:
    """Return how many of the accounts have a repository."""
    whole = [fate_of(number) is Fate.WHOLE for number in range(SIZES)]
    return accounts // SIZES * sum(whole) + sum(whole[: accounts % SIZES])
