"""Changing accounts while the sandbox runs: records, states, keys, handles and hosts."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from backfill_dagster.sandbox.account_state import (
    SECOND,
    AccountState,
    Identity,
    Status,
    endpoint,
    first_edit_time,
)
from backfill_dagster.sandbox.documents import is_in_plc
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.tid import tid
from backfill_dagster.sandbox.written import Written, iso_milliseconds, microseconds

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from backfill_dagster.sandbox.accounts import Accounts
    from backfill_dagster.sandbox.repo import Repos

GRAPH = "app.bsky.graph"
LIST = f"{GRAPH}.list"
LIST_ITEM = f"{GRAPH}.listitem"
STARTER_PACK = f"{GRAPH}.starterpack"

_CLOCK = 44


class Removal(NamedTuple):
    """One record that is deleted."""

    collection: str
    rkey: str


class Editor:
    """Changes accounts. Safe to use from any thread; what was changed is in force when a call returns.

    The same calls in the same order give the same network, whenever they are made. All calls raise KeyError for
    a DID of no account, and ValueError for what the servers could not do either; then nothing has changed.
    """

    def __init__(self, accounts: Accounts, repos: Repos) -> None:
        self._accounts = accounts
        self._repos = repos
        self._lock = threading.RLock()
        self._first_time = first_edit_time(len(accounts.population.accounts))
        self._operations = 0

    def create(
        self,
        did: str,
        collection: str,
        fields: dict[str, Any],
        *,
        rkey: str | None = None,
        created: datetime | None = None,
    ) -> str:
        """Add a record in a commit of its own; returns its key, by default a TID of the time of the write.

        `$type` and `createdAt` are added to the fields; `created` is by default the time of the write.
        """
        with self._lock:
            next_time = self._next_time(did)
            rkey = tid(next_time, _CLOCK) if rkey is None else rkey
            if self._exists(self._accounts[did], (collection, rkey)):
                raise ValueError(f"{did} has a record {collection}/{rkey} already")
            self.write(did, _written(collection, rkey, fields, created, next_time))
            return rkey

    def create_list(self, did: str, name: str, members: Iterable[str]) -> str:
        """Make a list of these members; returns its URI."""
        rkey = self.create(did, LIST, {"purpose": f"{GRAPH}.defs#curatelist", "name": name})
        uri = f"at://{did}/{LIST}/{rkey}"
        for member in members:
            self.create(did, LIST_ITEM, {"subject": member, "list": uri})
        return uri

    def create_starter_pack(self, did: str, name: str, list_uri: str) -> str:
        """Make a starter pack of the members of a list; returns its URI."""
        rkey = self.create(did, STARTER_PACK, {"name": name, "list": list_uri})
        return f"at://{did}/{STARTER_PACK}/{rkey}"

    def update(
        self,
        did: str,
        collection: str,
        rkey: str,
        fields: dict[str, Any],
        *,
        created: datetime | None = None,
    ) -> None:
        """Put another record under a key that has one, in a commit of its own; fields as for `create`."""
        with self._lock:
            if not self._exists(self._accounts[did], (collection, rkey)):
                raise ValueError(f"{did} has no record {collection}/{rkey}")
            self.write(did, _written(collection, rkey, fields, created, self._next_time(did)))

    def delete(self, did: str, collection: str, rkey: str) -> None:
        """Delete a record, in a commit of its own."""
        self.write(did, Removal(collection, rkey))

    def write(self, did: str, *changes: Written | Removal) -> str:
        """Put and delete any number of records in one commit; returns the new revision.

        It is signed with the key that the directory now names, also where nothing is changed.
        """

        def change(state: AccountState) -> AccountState:
            _must_be_active(state)
            changed = dict(state.changes)
            for path, record in [_as_change(change) for change in changes]:
                if record is None and not self._exists(replace(state, changes=changed), path):
                    raise ValueError(f"{did} has no record {'/'.join(path)}")
                if record is None and not self._repos.was_first(state.account, path):
                    del changed[path]
                else:
                    changed[path] = record
            return replace(state, changes=changed, writes=state.writes + 1, repo_key=state.identity.key)

        with self._lock:
            return self._accounts.change(did, change).rev

    def deactivate(self, did: str) -> None:
        """Have the account's PDS call it deactivated."""
        self.set_status(did, Status.DEACTIVATED)

    def take_down(self, did: str) -> None:
        """Have the account's PDS call it taken down."""
        self.set_status(did, Status.TAKENDOWN)

    def suspend(self, did: str) -> None:
        """Have the account's PDS call it suspended."""
        self.set_status(did, Status.SUSPENDED)

    def reactivate(self, did: str) -> None:
        """Make an account active again, with the records that it had."""
        self.set_status(did, Status.ACTIVE)

    def set_status(self, did: str, status: Status) -> None:
        """Have the account's PDS say this of it."""

        def change(state: AccountState) -> AccountState:
            _must_have_repo(state)
            return replace(state, copies={**state.copies, state.host: status})

        self._accounts.change(did, change)

    def delete_account(self, did: str) -> None:
        """Have the account's PDS forget it, as the official one does; the directory is not told."""

        def change(state: AccountState) -> AccountState:
            _must_have_repo(state)
            left = {host: status for host, status in state.copies.items() if host != state.host}
            return replace(state, copies=left)

        self._accounts.change(did, change)

    def tombstone(self, did: str) -> None:
        """End an account in the directory; its PDS is not told."""

        def change(state: AccountState) -> AccountState:
            if not is_in_plc(state.account) or state.tombstoned is not None:
                raise ValueError(f"{did} is not in the PLC directory")
            return replace(state, tombstoned=self._next_operation())

        with self._lock:
            self._accounts.change(did, change)

    def change_handle(self, did: str, handle: str) -> None:
        """Give an account another handle."""
        with self._lock:
            self._accounts.change(did, lambda state: self._identify(state, handle=handle))

    def rotate_key(self, did: str) -> None:
        """Give an account another signing key. Until it writes, its repository is signed with an earlier one."""
        with self._lock:
            self._accounts.change(did, lambda state: self._identify(state, key=_new_key(state)))

    def migrate(self, did: str, to: str, *, new_key: bool = True) -> None:
        """Move an account to another PDS. Its repository goes with it as it is, with its old signature.

        The old PDS keeps its copy and calls it deactivated. With `new_key`, as is usual, the repository is
        signed with an earlier key until the account writes (`write` without a change will do).
        """

        def change(state: AccountState) -> AccountState:
            _must_have_repo(state)
            if to == state.host or to not in self._accounts.population.hosts:
                raise ValueError(f"{did} cannot move from {state.host} to {to}")
            status = state.copies[state.host]
            others = {host: said for host, said in state.copies.items() if host != state.host}
            key = _new_key(state) if new_key else state.identity.key
            return replace(
                self._identify(state, pds=endpoint(to), key=key),
                host=to,
                copies={**others, state.host: Status.DEACTIVATED, to: status},
            )

        with self._lock:
            self._accounts.change(did, change)

    def reset(self) -> None:
        """Undo all edits of all accounts."""
        with self._lock:
            self._accounts.reset()
            self._operations = 0

    def _exists(self, state: AccountState, path: tuple[str, str]) -> bool:
        if path in state.changes:
            return state.changes[path] is not None
        return self._repos.was_first(state.account, path)

    def _next_time(self, did: str) -> int:
        state = self._accounts[did]
        return state.time_of(state.writes + 1)

    def _identify(self, state: AccountState, **fields: str) -> AccountState:
        """Have the directory, or the host of a did:web, say something else from now on."""
        account = state.account
        if account.role is Role.DID_WEB_GONE or not (account.is_web or is_in_plc(account)):
            raise ValueError(f"{state.did} has no document")
        if state.tombstoned is not None:
            raise ValueError(f"{state.did} is tombstoned")
        identity = Identity(
            handle=fields.get("handle", state.identity.handle),
            pds=fields.get("pds", state.identity.pds),
            key=fields.get("key", state.identity.key),
            since=self._next_operation(),
        )
        return replace(state, identities=(*state.identities, identity))

    def _next_operation(self) -> int:
        """Return the time of an operation, later than all that the directory has."""
        self._operations += 1
        return self._first_time + self._operations * SECOND


def _written(
    collection: str, rkey: str, fields: dict[str, Any], created: datetime | None, now: int
) -> Written:
    if "createdAt" in fields:
        raise ValueError("give the date as `created`, or a whole record to `write`")
    # What `createdAt` will say has no more than milliseconds.
    instant = (now if created is None else microseconds(created)) // 1000 * 1000
    value = {"$type": collection, **fields, "createdAt": iso_milliseconds(instant)}
    return Written(collection, rkey, value, instant)


def _as_change(change: Written | Removal) -> tuple[tuple[str, str], Written | None]:
    return (change.collection, change.rkey), change if isinstance(change, Written) else None


def _must_have_repo(state: AccountState) -> None:
    if state.status is None:
        raise ValueError(f"no host has a repository of {state.did}")


def _must_be_active(state: AccountState) -> None:
    if state.status is not Status.ACTIVE:
        raise ValueError(f"{state.did} is not active, so that it cannot write")


def _new_key(state: AccountState) -> str:
    if state.account.is_web:
        # There is no log that would name the key that the repository is still signed with.
        raise ValueError(f"{state.did} cannot change its key: a did:web keeps no log of earlier ones")
    return f"key {len(state.identities)}"
