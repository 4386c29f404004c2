"""All accounts of a sandbox as they stand now, for the servers that read and the edits that write."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.account_state import AccountState, Status, first_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill_dagster.sandbox.population import Population


class Accounts:
    """The state of every account. Safe to use from any thread; what is read is whole and never changes.

    Only accounts that were edited are kept: of the others the beginning is made again when it is asked for.
    """

    def __init__(self, population: Population) -> None:
        self.population = population
        self._lock = threading.Lock()
        self._edited: dict[str, AccountState] = {}
        self._editions = itertools.count(1)
        self._directory_version = 0
        # Indexes of the accounts that each host has or had, ascending; replaced as a whole, so that readers need
        # no lock.
        self._by_host: dict[str, tuple[int, ...]] = {}
        self._list_hosts()

    @property
    def directory_version(self) -> int:
        """A number that grows whenever what the directory says of any account changes."""
        return self._directory_version

    def __getitem__(self, did: str) -> AccountState:
        """Return how an account stands. Raises KeyError for a DID of no account."""
        return self._edited.get(did) or first_state(self.population.by_did[did])

    def get(self, did: str) -> AccountState | None:
        """Return how an account stands; None for a DID of no account."""
        return self[did] if did in self.population.by_did else None

    def all(self) -> Iterator[AccountState]:
        """Go through all accounts, in the order of the population."""
        return (self[account.did] for account in self.population.accounts)

    def with_handle(self, handle: str) -> AccountState | None:
        """Return how the account of a handle stands; None if the handle is nobody's."""
        first = self.population.by_handle.get(handle)
        candidates = [*self._edited.values(), *([] if first is None else [self[first.did]])]
        return next((state for state in candidates if state.identity.handle == handle), None)

    def on_host(self, host: str, first: int, most: int) -> list[tuple[AccountState, Status]]:
        """List accounts that a host has the repository of, from an index of the population on."""
        indexes = self._by_host[host]
        start = bisect_left(indexes, first)
        known = (self[self.population.accounts[indexes[place]].did] for place in range(start, len(indexes)))
        found = ((state, state.copies[host]) for state in known if host in state.copies)
        return list(itertools.islice(found, most))

    def change(self, did: str, change: Callable[[AccountState], AccountState]) -> AccountState:
        """Put what `change` makes of an account's state in its place, in force when this returns.

        Raises KeyError for a DID of no account, and whatever `change` raises; then nothing has changed.
        """
        with self._lock:
            before = self[did]
            after = replace(change(before), edition=next(self._editions))
            self._edited[did] = after
            for host in after.copies.keys() - before.copies.keys():
                self._by_host[host] = tuple(sorted({*self._by_host[host], after.account.index}))
            if (before.identities, before.tombstoned) != (after.identities, after.tombstoned):
                self._directory_version += 1
            return after

    def reset(self) -> None:
        """Undo all edits."""
        with self._lock:
            self._edited = {}
            self._directory_version += 1
            self._list_hosts()

    def _list_hosts(self) -> None:
        by_host: dict[str, list[int]] = {host: [] for host in self.population.hosts}
        for account in self.population.accounts:
            for host in first_state(account).copies:
                by_host[host].append(account.index)
        self._by_host = {host: tuple(indexes) for host, indexes in by_host.items()}
