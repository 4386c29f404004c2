"""What a study asks of an account: its whole repository, some of its records by name, or some collections of it.

What was asked goes into the account's row of a pack as a digest, so that an attempt can be told from one that another
list, or another way of fetching, would make.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from backfill_dagster.repos.outcomes import Obtained

if TYPE_CHECKING:
    from collections.abc import Iterable

NOTHING = "nothing"
"""Stands for the digest of what is asked of an account of which nothing is."""

_PATHS_SCHEMA = pl.Schema({"did": pl.String(), "collection": pl.String(), "rkey": pl.String()})


class RecordPath(NamedTuple):
    """Which record of an account: what its URI says after the DID."""

    collection: str
    rkey: str


class Asks:
    """What is asked of each account; by default the whole repository of everyone."""

    obtained = Obtained.REPO

    def of(self, did: str) -> str | None:
        """Return the digest of what is asked of one account: null for its repository, or `NOTHING`."""
        del did
        return None

    def of_each(self, dids: pl.Series) -> pl.Series:
        """Return that of each of these accounts."""
        return pl.Series("asked", [None], dtype=pl.String).new_from_index(0, len(dids))


class AsksCollections(Asks):
    """Some collections, whole, of everyone."""

    obtained = Obtained.LIST_RECORDS

    def __init__(self, collections: Iterable[str]) -> None:
        self.collections = tuple(sorted(set(collections)))
        self._digest = _digest(Obtained.LIST_RECORDS, self.collections)

    def of(self, did: str) -> str:
        """Return the digest, which is the same for everyone."""
        del did
        return self._digest

    def of_each(self, dids: pl.Series) -> pl.Series:
        """Return that of each of these accounts."""
        return pl.Series("asked", [self._digest], dtype=pl.String).new_from_index(0, len(dids))


class AsksRecords(Asks):
    """Single records of some accounts, and nothing of the others.

    Held as columns: a list may have millions of URIs.
    """

    obtained = Obtained.RECORD_PROOF

    def __init__(self, records: pl.DataFrame) -> None:
        """Take `did, collection, rkey` (text) of each record, in any order; any may stand there more than once."""
        self._records = records.select(_PATHS_SCHEMA.names()).unique().sort(pl.all())
        runs = self._records["did"].rle().struct
        firsts = runs.field("len").cum_sum() - runs.field("len")
        self._places = dict(
            zip(runs.field("value"), zip(firsts, runs.field("len"), strict=True), strict=True)
        )
        self._digests: dict[str, str] = {}

    def paths(self, did: str) -> list[RecordPath]:
        """Return which records are asked of one account, in the order of their keys."""
        first, length = self._places.get(did, (0, 0))
        return list(map(RecordPath._make, self._records.slice(first, length).drop("did").iter_rows()))

    def of(self, did: str) -> str:
        """Return the digest of the account's records; `NOTHING` if there are none."""
        if did not in self._places:
            return NOTHING
        known = self._digests.get(did)
        if known is None:
            paths = (f"{path.collection}/{path.rkey}" for path in self.paths(did))
            known = self._digests[did] = _digest(Obtained.RECORD_PROOF, paths)
        return known

    def of_each(self, dids: pl.Series) -> pl.Series:
        """Return that of each of these accounts."""
        return pl.Series("asked", list(map(self.of, dids)), dtype=pl.String)


def with_asked(directory: pl.DataFrame, asks: Asks) -> pl.DataFrame:
    """Add to rows with a `did` what is asked of each account, as `asked`."""
    return directory.with_columns(asks.of_each(directory["did"]))


def _digest(way: Obtained, names: Iterable[str]) -> str:
    # Neither NSIDs nor record keys hold a line's end.
    told = "\n".join([way.value, *names])
    return hashlib.sha256(told.encode()).hexdigest()[:20]


WHOLE_REPOS = Asks()
