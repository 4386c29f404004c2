"""One account to fetch: where it lives, and by which key what arrives is checked."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.repos.keys import SigningKey, SigningKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Account:
    """One account to fetch: its PDS's origin and host, and the verification method that its DID document names.

    With a `known_rev`, the repository is fetched only if it is at another revision by now.
    """

    did: str
    pds: str
    pds_host: str
    key_type: str | None
    key_multibase: str | None
    known_rev: str | None = None
    moves: int = 0

    @classmethod
    def from_directory(
        cls,
        did: str,
        pds: str,
        pds_host: str,
        key_type: str | None,
        key_multibase: str | None,
        known_rev: str | None = None,
    ) -> Account:
        """Make an account of a resolved row of the directory."""
        # One text for all accounts of a host.
        pds, pds_host = sys.intern(pds), sys.intern(pds_host)
        return cls(did, pds, pds_host, key_type, key_multibase, known_rev)

    @property
    def key(self) -> str | None:
        """The key as `did:key:...`; None if the document names none, or one of no curve that the protocol knows."""
        return did_key_of(self.key_type, self.key_multibase)


def by_host(accounts: Iterable[Account]) -> dict[str, list[Account]]:
    """Return the accounts of each host, in the order in which they are given."""
    found: defaultdict[str, list[Account]] = defaultdict(list)
    for account in accounts:
        found[account.pds_host].append(account)
    return found


def did_key_of(key_type: str | None, key_multibase: str | None) -> str | None:
    """Return a verification method's key as `did:key:...`; None if there is none, or none that can be read."""
    if key_type is None or key_multibase is None:
        return None
    try:
        return SigningKey.from_verification_method(key_type, key_multibase).did_key
    except SigningKeyError:
        return None
