"""The repositories that servers export, written once and kept for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.sandbox.dag_cbor import cid_text
from backfill_dagster.sandbox.listing import Listing

if TYPE_CHECKING:
    from backfill_dagster.sandbox.account_state import AccountState
    from backfill_dagster.sandbox.faults.switches import StructuralFault
    from backfill_dagster.sandbox.repo import Repo, RepoFile, Repos


# Repositories in parts, and listings, that are kept.
_FEW = 256


class _Edition(NamedTuple):
    """What an export depends on."""

    did: str
    edition: int
    key: str
    faults: tuple[StructuralFault, ...]


class Exports:
    """Repositories, written when first asked for, in a thread of their own, so that servers go on answering.

    Keeps up to `capacity` bytes of them; of each account the CID of its latest commit is kept for good, and the names
    of its collections.
    """

    def __init__(self, repos: Repos, capacity: int = 256 * 2**20) -> None:
        self._repos = repos
        self._capacity = capacity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sandbox-repos")
        self._kept: OrderedDict[_Edition, Repo] = OrderedDict()
        self._size = 0
        self._commits: dict[str, tuple[int, str]] = {}
        self._collections: dict[str, tuple[int, frozenset[str]]] = {}
        self._files: OrderedDict[_Edition, RepoFile] = OrderedDict()
        self._listings: OrderedDict[_Edition, Listing] = OrderedDict()

    async def repo(self, state: AccountState, faults: tuple[StructuralFault, ...] = ()) -> Repo:
        """Return an account's repository, with these faults."""
        kept = self._kept.get(_edition(state, faults))
        if kept is not None:
            return kept
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._build, state, faults)

    async def file(self, state: AccountState, faults: tuple[StructuralFault, ...] = ()) -> RepoFile:
        """Return an account's repository in its parts, with these faults."""
        edition = _edition(state, faults)
        if edition not in self._files:
            loop = asyncio.get_running_loop()
            self._files[edition] = await loop.run_in_executor(
                self._thread, self._repos.build_file, state, faults
            )
            if len(self._files) > _FEW:
                self._files.popitem(last=False)
        return self._files[edition]

    async def listing(self, state: AccountState, faults: tuple[StructuralFault, ...] = ()) -> Listing:
        """Return an account's records, with those that these faults add."""
        edition = _edition(state, faults)
        if edition not in self._listings:
            loop = asyncio.get_running_loop()
            self._listings[edition] = await loop.run_in_executor(self._thread, self._list, state, faults)
            if len(self._listings) > _FEW:
                self._listings.popitem(last=False)
        return self._listings[edition]

    async def commit(self, state: AccountState) -> str:
        """Return the CID of an account's commit, as text."""
        edition, commit = self._commits.get(state.did, (None, ""))
        if edition != state.edition:
            commit = cid_text((await self.repo(state)).commit)
            self._commits[state.did] = state.edition, commit
        return commit

    async def collections(self, state: AccountState) -> frozenset[str]:
        """Return the collections that an account has records of."""
        edition, collections = self._collections.get(state.did, (None, frozenset()))
        if edition != state.edition:
            loop = asyncio.get_running_loop()
            collections = await loop.run_in_executor(self._thread, self._find_collections, state)
            self._collections[state.did] = state.edition, collections
        return collections

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _list(self, state: AccountState, faults: tuple[StructuralFault, ...]) -> Listing:
        added = [record for fault in faults for record in fault.written()]
        return Listing(state.did, [*self._repos.records(state), *added])

    def _find_collections(self, state: AccountState) -> frozenset[str]:
        return frozenset(record.collection for record in self._repos.records(state))

    def _build(self, state: AccountState, faults: tuple[StructuralFault, ...]) -> Repo:
        edition = _edition(state, faults)
        kept = self._kept.get(edition)
        if kept is not None:  # written while this request waited
            return kept
        repo = self._repos.build(state, faults)
        self._kept[edition] = repo
        self._size += len(repo.car)
        while self._size > self._capacity and len(self._kept) > 1:
            self._size -= len(self._kept.popitem(last=False)[1].car)
        return repo


def _edition(state: AccountState, faults: tuple[StructuralFault, ...]) -> _Edition:
    return _Edition(state.did, state.edition, state.repo_key, faults)
