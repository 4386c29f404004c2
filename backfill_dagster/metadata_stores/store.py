"""What every metadata store offers, whatever keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backfill_dagster.metadata_stores.items import RunItem, UserItem


class StoreError(StorageError):
    """A store that is not on this machine does not take or give its items; what is stored here is whole."""


class Store(Protocol):
    """The items of one study: one for each account, one for each run. What is put again replaces what was there.

    Every method raises StorageError, with what to do about it; of a store elsewhere, StoreError.
    """

    def identity(self) -> str:
        """Name the store: of another one, another name."""

    def put_users(self, users: Iterable[UserItem]) -> None:
        """Write accounts' items."""

    def remove_users(self, dids: Iterable[str]) -> None:
        """Delete accounts' items; one that is not there is none."""

    def users(self) -> Iterator[UserItem]:
        """Yield all accounts' items, by DID."""

    def dids(self) -> Iterator[list[str]]:
        """Yield the DIDs of all accounts, in order, some at a time."""

    def put_runs(self, runs: Iterable[RunItem]) -> None:
        """Write runs' items; a body that is too long for the store is cut, and says so."""

    def runs(self) -> Iterator[RunItem]:
        """Yield all runs' items, by run id."""

    def has_lost_users(self) -> bool:
        """Tell whether there is no account's item, since the file is gone; of a store elsewhere, false, unasked."""

    def has_lost_runs(self) -> bool:
        """Tell the same of runs' items."""

    def erase(self) -> None:
        """Leave nothing behind of items that were removed, as far as that is in this store's hands."""
