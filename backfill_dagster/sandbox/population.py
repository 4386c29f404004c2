"""Who lives in the sandbox: its accounts with their roles, hosts and keys, all derived from the settings."""

from __future__ import annotations

import base64
import math
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import accumulate
from statistics import NormalDist
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.keys import Curve, SigningKey, derive_key

if TYPE_CHECKING:
    from backfill_dagster.config.network import SandboxSettings

PLC_HOST = "plc.sandbox.test"
RELAY_HOST = "relay.sandbox.test"


class Role(StrEnum):
    """What is peculiar about an account. Each exists at least once, whatever the settings."""

    NORMAL = "normal"

    # Whole repositories with something odd in them.
    EMPTY = "empty"
    ODD_DATES = "odd_dates"
    UNKNOWN_LEXICONS = "unknown_lexicons"
    UNICODE = "unicode"
    LEGACY_BLOBS = "legacy_blobs"
    FLOATS = "floats"
    WRONG_TYPE_NAME = "wrong_type_name"
    WRONG_FIELD_TYPES = "wrong_field_types"
    INVALID_UTF8 = "invalid_utf8"
    NOT_RECORDS = "not_records"
    SHARED_BLOCK = "shared_block"
    DUPLICATE_LIKES = "duplicate_likes"
    ODD_KEYS = "odd_keys"  # unusual and lawful
    BAD_KEYS = "bad_keys"  # some keys of the tree are no record's path
    DID_WEB = "did_web"
    MIGRATED = "migrated"  # its former host says RepoDeactivated; it has written since
    PREVIOUS_KEY = "previous_key"  # migrated and silent since: signed with the key before the current one

    # Accounts whose server gives no repository.
    DEACTIVATED = "deactivated"
    TAKENDOWN = "takendown"
    SUSPENDED = "suspended"
    NOT_FOUND = "not_found"

    # Accounts without a usable DID document.
    TOMBSTONED = "tombstoned"
    UNKNOWN_TO_PLC = "unknown_to_plc"
    DOCUMENT_WITHOUT_PDS = "document_without_pds"
    DOCUMENT_OF_ANOTHER = "document_of_another"
    DID_WEB_GONE = "did_web_gone"


_PECULIAR = (*(role for role in Role if role is not Role.NORMAL), Role.DID_WEB)
_DID_WEB_ROLES = frozenset({Role.DID_WEB, Role.DID_WEB_GONE})
# In large populations one account in twenty is peculiar; did:web stays rare, for each needs a host of its own.
_ELSEWHERE = tuple(role for role in _PECULIAR if role not in _DID_WEB_ROLES)
_MOVED_ROLES = frozenset({Role.MIGRATED, Role.PREVIOUS_KEY})

_WITHOUT_REPO = frozenset({Role.NOT_FOUND, Role.TOMBSTONED, Role.UNKNOWN_TO_PLC, Role.DID_WEB_GONE})

# Spread of account sizes: the mean of a log-normal is exp(sigma²/2) = 1.6 times its median.
_SIZE_SIGMA = 1.0
_LARGEST_SIZE = 40

_HANDLES = (
    "ada",
    "bruno",
    "chiyo",
    "dafna",
    "emeka",
    "farah",
    "goran",
    "hilde",
    "itzel",
    "jun",
    "kofi",
    "lena",
)


@dataclass(frozen=True, slots=True)
class Account:
    """One account. `size` is the number of ordinary records; a role may add some."""

    seed: int
    index: int
    did: str
    handle: str
    role: Role
    host: str
    former_host: str | None
    curve: Curve
    size: int

    @property
    def has_repo(self) -> bool:
        """Whether a server holds a repository of it, though perhaps without giving it away."""
        return self.role not in _WITHOUT_REPO

    @property
    def is_web(self) -> bool:
        """Whether it is a `did:web`."""
        return self.role in _DID_WEB_ROLES

    @property
    def current_key(self) -> SigningKey:
        """The key in its DID document, in the beginning."""
        return self.key("current")

    @property
    def previous_key(self) -> SigningKey:
        """The key that its DID document held before, for an account that has moved."""
        return self.key("previous")

    def key(self, name: str) -> SigningKey:
        """Return the one key that belongs to a name."""
        return derive_key(self.curve, f"{self.seed} {self.did} {name}")


class Population:
    """All accounts of a sandbox, in a stable order; the same for the same settings in any process."""

    def __init__(self, settings: SandboxSettings) -> None:
        self.settings = settings
        self.hosts = tuple(f"pds{number}.sandbox.test" for number in range(1, settings.hosts + 1))
        self.accounts = tuple(self._accounts())
        self.by_did = {account.did: account for account in self.accounts}
        self.by_handle = {account.handle: account for account in self.accounts}

    def _accounts(self) -> list[Account]:
        total, seed = self.settings.accounts, self.settings.seed
        # Accounts stand on their hosts in the proportion of the hosts' weights, in an order of chance.
        order = sorted(range(total), key=lambda index: _chance(seed, "host", index))
        rank = {index: position for position, index in enumerate(order)}
        shares = _host_shares(len(self.hosts))
        median = NormalDist(math.log(self.settings.records), _SIZE_SIGMA)

        accounts = []
        for index in range(total):
            role = _role(seed, index, total)
            host = min(bisect_right(shares, (rank[index] + 0.5) / total), len(self.hosts) - 1)
            former = (host + 1) % len(self.hosts) if role in _MOVED_ROLES and len(self.hosts) > 1 else None
            size = round(math.exp(median.inv_cdf(_chance(seed, "size", index))))
            name = f"{_HANDLES[index % len(_HANDLES)]}{index:03}"
            accounts.append(
                Account(
                    seed=seed,
                    index=index,
                    did=_did(seed, index, role),
                    handle=f"{name}.sandbox.test",
                    role=role,
                    host=self.hosts[host],
                    former_host=None if former is None else self.hosts[former],
                    curve=Curve.P256 if _chance(seed, "curve", index) < 0.25 else Curve.K256,
                    size=min(max(size, 1), self.settings.records * _LARGEST_SIZE),
                )
            )
        return accounts


def _role(seed: int, index: int, total: int) -> Role:
    # In the smallest populations the peculiar accounts stand close together, else a normal one between two.
    stride = 2 if total >= 2 * len(_PECULIAR) else 1
    if index < stride * len(_PECULIAR):
        return _PECULIAR[index // stride] if index % stride == stride - 1 else Role.NORMAL
    chance = _chance(seed, "role", index) * 20
    return _ELSEWHERE[int(chance * len(_ELSEWHERE))] if chance < 1 else Role.NORMAL


def _did(seed: int, index: int, role: Role) -> str:
    if role in _DID_WEB_ROLES:
        return f"did:web:web{index:03}.sandbox.test"
    digest = sha256(f"sandbox did {seed} {index}".encode()).digest()
    return "did:plc:" + base64.b32encode(digest[:15]).decode().lower()


def _host_shares(hosts: int) -> list[float]:
    """Cumulate shares: the first host has 40 % of the accounts, the others ever fewer, the last a handful."""
    if hosts == 1:
        return [1.0]
    weights = [rank**-1.5 for rank in range(2, hosts + 1)]
    rest = sum(weights)
    return list(accumulate([0.4, *(0.6 * weight / rest for weight in weights)]))


def _chance(seed: int, purpose: str, index: int) -> float:
    """Return a number in (0, 1) that depends on the arguments only."""
    digest = sha256(f"sandbox {purpose} {seed} {index}".encode()).digest()
    return (int.from_bytes(digest[:6]) + 0.5) / 2**48
