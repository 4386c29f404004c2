"""How an account stands: what the directory says of it, which hosts know it, and what it has written.

A state is a value. An edit makes another one of it, and whoever looks has one or the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.population import Account, Role
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.written import microseconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.sandbox.keys import SigningKey
    from backfill_dagster.sandbox.written import Written

SECOND = 1_000_000
DAY = 86_400 * SECOND

# The time of the first account's first operation in the directory, and from one account's to the next one's.
_BORN = 1_684_000_000 * SECOND
_BETWEEN_BIRTHS = 7_919 * SECOND
_MOVED_AFTER = 301 * DAY
_TOMBSTONED_AFTER = 400 * DAY

_FIRST_REV = microseconds(datetime(2025, 6, 2, tzinfo=UTC))

_MOVED = frozenset({Role.MIGRATED, Role.PREVIOUS_KEY})

# Names of an account's first keys; later ones are named by the edits that bring them.
CURRENT_KEY = "current"
PREVIOUS_KEY = "previous"


class Status(StrEnum):
    """What a host says of an account that it has the repository of."""

    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    TAKENDOWN = "takendown"
    SUSPENDED = "suspended"
    DESYNCHRONIZED = "desynchronized"
    THROTTLED = "throttled"
    DELETED = "deleted"
    INACTIVE = "inactive"  # not active, without a word on why


_FIRST_STATUS = {
    Role.DEACTIVATED: Status.DEACTIVATED,
    Role.TAKENDOWN: Status.TAKENDOWN,
    Role.SUSPENDED: Status.SUSPENDED,
}


def endpoint(host: str) -> str:
    """Return the URL of a PDS as documents give it."""
    return f"http://{host}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the directory says of an account: handle, URL of its PDS, name of its signing key.

    `since` is the time of the operation that made it so, in microseconds since 1970.
    """

    handle: str
    pds: str
    key: str
    since: int


@dataclass(frozen=True, slots=True)
class AccountState:
    """How one account stands.

    `identities` is what the directory has said, oldest first. `host` is the PDS in charge; `copies` says which
    hosts have the repository and what each says of the account. `repo_key` names the key that signed the last
    of `writes` commits after the first. `changes` are the records written since, None for one deleted.
    `edition` tells the states of an account apart: 0 is the beginning, and no other number comes twice.
    """

    account: Account
    identities: tuple[Identity, ...]
    host: str
    copies: Mapping[str, Status]
    repo_key: str
    tombstoned: int | None = None
    writes: int = 0
    changes: Mapping[tuple[str, str], Written | None] = field(default_factory=dict)
    edition: int = 0

    @property
    def did(self) -> str:
        """The account's DID."""
        return self.account.did

    @property
    def identity(self) -> Identity:
        """What the directory says now."""
        return self.identities[-1]

    @property
    def status(self) -> Status | None:
        """What the PDS in charge says of the account; None if it does not know it."""
        return self.copies.get(self.host)

    @property
    def former_host(self) -> str | None:
        """The PDS that was in charge before, None for an account that never moved."""
        others = [host for host in self.copies if host != self.host]
        return others[-1] if others else None

    @property
    def rev(self) -> str:
        """The revision: the time of the last write, the first later than all that ordinary accounts write."""
        return self.rev_of(self.writes)

    def rev_of(self, write: int) -> str:
        """Name the revision of a write: 0 is the first commit, and -1 a time just before it."""
        return tid(self.time_of(write), self._digest[5])

    def time_of(self, write: int) -> int:
        """Return the time of a write, in microseconds since 1970."""
        return _FIRST_REV + int.from_bytes(self._digest[:5]) + write * SECOND

    def key(self, name: str) -> SigningKey:
        """Return one of the account's keys."""
        return self.account.key(name)

    @property
    def _digest(self) -> bytes:
        return sha256(f"sandbox rev {self.account.seed} {self.did}".encode()).digest()


def first_state(account: Account) -> AccountState:
    """Return how an account stands in the beginning, as its role has it."""
    born = _BORN + account.index * _BETWEEN_BIRTHS
    now = Identity(account.handle, endpoint(account.host), CURRENT_KEY, born)
    identities: tuple[Identity, ...] = (now,)
    copies: dict[str, Status] = {}
    if account.role in _MOVED:
        former = account.former_host or account.host
        before = Identity(account.handle, endpoint(former), PREVIOUS_KEY, born)
        identities = (before, Identity(now.handle, now.pds, now.key, born + _MOVED_AFTER))
        copies[former] = Status.DEACTIVATED
    if account.has_repo:
        copies[account.host] = _FIRST_STATUS.get(account.role, Status.ACTIVE)
    return AccountState(
        account=account,
        identities=identities,
        host=account.host,
        copies=copies,
        repo_key=PREVIOUS_KEY if account.role is Role.PREVIOUS_KEY else CURRENT_KEY,
        tombstoned=born + _TOMBSTONED_AFTER if account.role is Role.TOMBSTONED else None,
    )


def first_edit_time(accounts: int) -> int:
    """Return a time after all operations of the directory that a population of this size begins with."""
    return _BORN + accounts * _BETWEEN_BIRTHS + _TOMBSTONED_AFTER + DAY
