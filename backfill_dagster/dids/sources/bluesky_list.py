"""The members of a Bluesky list or starter pack, read from the proven repository of its owner.

Sources: the lexicons app.bsky.graph.list, app.bsky.graph.listitem and app.bsky.graph.starterpack.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import polars as pl

from backfill_dagster.dids.entries import BATCH_ROWS, as_entries
from backfill_dagster.dids.sources.listed import connections_of
from backfill_dagster.dids.sources.owners_repo import OwnersRepo, owners_repo
from backfill_dagster.dids.syntax import check_did
from backfill_dagster.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from backfill_dagster.config.sources import ListSource
    from backfill_dagster.dids.entries import SourceAccess

LIST = "app.bsky.graph.list"
LIST_ITEM = "app.bsky.graph.listitem"
STARTER_PACK = "app.bsky.graph.starterpack"


class _Uri(NamedTuple):
    did: str
    collection: str
    rkey: str

    def __str__(self) -> str:
        return f"at://{self.did}/{self.collection}/{self.rkey}"


class ListEntries:
    """The accounts on a list, or on that of a starter pack, in the order of their entries' record keys."""

    needs_network = True

    def __init__(self, source: ListSource, field: str) -> None:
        self._source = source
        # The address itself names the owner, and messages are kept for longer than accounts.
        self._described = f"{field}.uri"
        self._file = f"{field}.car"

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield the members; raises SourceError if the list, or its owner's repository, cannot be had."""
        connections, car = connections_of(access), access.scratch / self._file
        named = _Uri(*self._source.uri.removeprefix("at://").split("/"))
        async with owners_repo(connections, named.did, car, self._described) as repo:
            uri = self._list_of(repo, named) if named.collection == STARTER_PACK else named
            if uri.did == named.did:
                for batch in self._members(repo, uri):
                    yield batch
                return
        # A starter pack can have somebody else's list.
        async with owners_repo(connections, uri.did, car, self._described) as repo:
            for batch in self._members(repo, uri):
                yield batch

    def describe(self) -> str:
        """Name the source for a message."""
        return self._described

    def stamp(self) -> None:
        """Nothing tells without asking whether a list has changed."""

    def _list_of(self, repo: OwnersRepo, pack: _Uri) -> _Uri:
        record = repo.record(STARTER_PACK, pack.rkey)
        if record is None:
            raise SourceError(f"{self._described}: its owner's repository has no such starter pack")
        named = record.get("list")
        parts = named.removeprefix("at://").split("/") if isinstance(named, str) else []
        if len(parts) != 3 or parts[1] != LIST or check_did(parts[0]) is not None:
            raise SourceError(f"{self._described}: the starter pack names no list")
        return _Uri(*parts)

    def _members(self, repo: OwnersRepo, uri: _Uri) -> Iterator[pl.DataFrame]:
        if repo.record(LIST, uri.rkey) is None:
            raise SourceError(f"{self._described}: its owner's repository has no such list")
        items = (item for item in repo.records(LIST_ITEM) if item.get("list") == str(uri))
        while subjects := [_text(item.get("subject")) for item in islice(items, BATCH_ROWS)]:
            yield as_entries(pl.Series("entry", subjects, dtype=pl.String))


def _text(subject: Any) -> str | None:
    """Return who is listed; what is no text is no DID, and told as it was given."""
    if subject is None or isinstance(subject, str):
        return subject
    return orjson.dumps(subject, default=repr).decode()
