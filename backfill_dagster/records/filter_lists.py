"""The lists that filters name, as a study stores them: AT-URIs to keep, and subjects that are AT-URIs or DIDs.

A list is read from its source once, before records are converted, and stored sorted, each entry once, so that the same
list is the same file. Its digest, which stands in the file, is what conversions are known by: nobody has to open
a source to tell whether they are up to date. What is purged is left out of the file but not of the digest: it can keep
no record, so that nothing has to be converted again for it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.errors import StorageError
from backfill_dagster.records.filters import RecordFilter
from backfill_dagster.records.list_entries import ListRejection
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from backfill_dagster.purge.tombstones import Tombstones
    from backfill_dagster.records.list_entries import ListField
    from backfill_dagster.stores.location import Location

FILTERS_FOLDER = "filters"
LIST_COLUMNS = (
    Column("did", pl.String(), "The account whose the entry is, by which the list is sorted.", required=True),
    Column("entry", pl.String(), "The AT-URI, or the DID.", required=True),
    Column("cid", pl.String(), "Of what was shared: the CID that the record had."),
    Column("table", pl.String(), "Of what was shared: the table that it stood in."),
)
LIST_SCHEMA = schema_of(LIST_COLUMNS)

# Raised whenever the same source would make another list.
LIST_VERSION = 1

_DIGEST, _GIVEN, _REJECTED, _STAMP = "digest", "given", "rejected", "stamp"


@dataclass(frozen=True, slots=True)
class StoredList:
    """A list as it was stored: its key, the digest of its entries, and what was given, kept and rejected by reason.

    Entries that stand in it more than once are kept once. `stamp` is what its source said of itself when it was read,
    in a form that names nobody; None if it could not tell.
    """

    key: str
    digest: str
    given: int
    kept: int
    rejected: Mapping[str, int]
    stamp: str | None = None

    @classmethod
    def unread(cls, key: str) -> StoredList:
        """Stand for a list that is not stored yet: whoever wants to use it finds that it is not there."""
        return cls(key, "", 0, 0, {})

    @property
    def is_empty(self) -> bool:
        """Whether it can keep no record, though not because of what was purged."""
        return self.kept == self.rejected.get(ListRejection.PURGED, 0) == 0


@dataclass(frozen=True, slots=True)
class StoredFilter:
    """What a `RecordFilter` says, with its lists where they are stored: small enough to hand to a worker.

    With `same_version`, a record must have the CID that it is listed with, if there is one.
    """

    uris: StoredList | None = None
    subjects: StoredList | None = None
    languages: tuple[str, ...] | None = None
    text: str | None = None
    same_version: bool = False

    def load(self, storage: StudyStorage, dids: pl.Series) -> RecordFilter:
        """Read what concerns the records of some accounts.

        Raises StorageError if a list is not the one that it was.
        """
        uris = cids = None
        if self.uris is not None:
            own = _scan(storage, self.uris).filter(pl.col("did").is_in(dids.implode())).select("entry", "cid")
            [listed] = storage.collect([own], [self.uris.key])
            uris, cids = listed["entry"], listed["cid"] if self.same_version else None
        subjects = (
            None if self.subjects is None else _whole(storage.root, self.subjects.key, self.subjects.digest)
        )
        return RecordFilter(uris, subjects, self.languages, self.text, cids)


def list_key(collection: str, field: ListField) -> str:
    """Return where the list of a filter's field is stored."""
    return f"{FILTERS_FOLDER}/{collection}.{field}.parquet"


def store_list(
    storage: StudyStorage,
    key: str,
    judged: Iterable[pl.DataFrame],
    tombstones: Tombstones,
    stamp: str | None = None,
) -> StoredList:
    """Store the entries of a list that can keep records, and count the others by reason (as `judge_entries` gives)."""
    given, rejected = 0, Counter[str]()
    found = [LIST_SCHEMA.to_frame()]
    for batch in judged:
        given += batch.height
        rejected.update(dict(batch["reason"].drop_nulls().value_counts().iter_rows()))
        found.append(batch.filter(pl.col("reason").is_null()).drop("reason"))
    entries = in_order(pl.concat(found, how="diagonal"))
    own = without_purged(entries, tombstones)
    if purged := entries.height - own.height:
        rejected[ListRejection.PURGED.value] = purged
    reasons = dict(sorted(rejected.items()))
    listed = StoredList(key, digest_of(entries), given, own.height, reasons, stamp)
    if read_list(storage, key) != listed or not read_entries(storage, key).equals(own):
        _store(storage, listed, own)
    return listed


def read_list(storage: StudyStorage, key: str) -> StoredList | None:
    """Return what is told of a stored list, without its entries; None if there is none, or none that can be read."""
    if not storage.exists(key):
        return None
    try:
        told = storage.metadata(key)
        [rows] = storage.collect([storage.scan([key], LIST_SCHEMA).select(pl.len())], [key])
    except (OSError, StorageError, pl.exceptions.PolarsError):
        return None
    given, rejected = json.loads(told[_GIVEN]), json.loads(told[_REJECTED])
    return StoredList(key, told[_DIGEST], given, rows.item(), rejected, told.get(_STAMP))


def read_entries(storage: StudyStorage, key: str) -> pl.DataFrame:
    """Return the entries of a stored list (LIST_SCHEMA)."""
    return storage.collect([storage.scan([key], LIST_SCHEMA)], [key])[0]


def in_order(entries: pl.DataFrame) -> pl.DataFrame:
    """Return entries (LIST_SCHEMA) as a list is stored: sorted, each once, with the first CID that it has."""
    return entries.sort(LIST_SCHEMA.names()).unique(["did", "entry"], keep="first", maintain_order=True)


def remove_other_lists(storage: StudyStorage, keys: Collection[str]) -> None:
    """Delete the lists that the study's filters do not name any more."""
    for key in storage.keys(FILTERS_FOLDER):
        if key not in keys:
            storage.remove(key)


def purge_list(storage: StudyStorage, key: str, tombstones: Tombstones) -> int:
    """Take what is purged out of a stored list; returns how many entries that were."""
    listed = read_list(storage, key)
    if listed is None:
        # Of no use, and nobody knows what it holds.
        remove_other_lists(storage, set(storage.keys(FILTERS_FOLDER)) - {key})
        return 0
    entries = read_entries(storage, key)
    own = without_purged(entries, tombstones)
    purged = entries.height - own.height
    if purged:
        rejected = Counter(listed.rejected)
        rejected[ListRejection.PURGED.value] += purged
        _store(storage, replace(listed, kept=own.height, rejected=dict(sorted(rejected.items()))), own)
    return purged


def without_purged(entries: pl.DataFrame, tombstones: Tombstones) -> pl.DataFrame:
    """Return entries (LIST_SCHEMA) without those of purged accounts, and those of purged records."""
    if not tombstones:
        return entries
    own = entries.filter(~pl.col("did").is_in(tombstones.held_among(entries["did"])))
    # A key can name somebody too.
    named = own["entry"].str.count_matches("did:") > 1
    partly = pl.Series(list(filter(tombstones.holds_records_of, own["did"].unique())), dtype=pl.String)
    suspects = own.filter(named | own["did"].is_in(partly.implode()))["entry"]
    purged = [entry for entry in suspects if tombstones.holds_uri(entry) or tombstones.named_in(entry)]
    return own.filter(~pl.col("entry").is_in(purged))


def digest_of(entries: pl.DataFrame) -> str:
    """Return the digest of a list's entries (LIST_SCHEMA), in their order."""
    digest = hashlib.sha256()
    cid, table = (pl.concat_str(pl.lit(" "), name) for name in ("cid", "table"))
    line = pl.concat_str("entry", cid.fill_null(""), table.fill_null(""), pl.lit("\n"))
    for batch in entries.iter_slices():
        digest.update(batch.select(line.str.join("")).item().encode())
    return digest.hexdigest()


def _store(storage: StudyStorage, listed: StoredList, entries: pl.DataFrame) -> None:
    told = {
        _DIGEST: listed.digest,
        _GIVEN: json.dumps(listed.given),
        _REJECTED: json.dumps(listed.rejected),
        **({} if listed.stamp is None else {_STAMP: listed.stamp}),
    }
    storage.write(listed.key, entries, metadata=told)


def _scan(storage: StudyStorage, listed: StoredList) -> pl.LazyFrame:
    stored = read_list(storage, listed.key)
    if stored is None or stored.digest != listed.digest:
        raise StorageError(
            f"{storage.where(listed.key)} is missing or has changed since this run began; materialize `records` again"
        )
    return storage.scan([listed.key], LIST_SCHEMA)


@lru_cache(maxsize=4)
def _whole(root: Location, key: str, digest: str) -> pl.Series:
    """Read all entries of a list; a process that converts many packs does so once."""
    storage = StudyStorage(root)
    [entries] = storage.collect([_scan(storage, StoredList(key, digest, 0, 0, {})).select("entry")], [key])
    return entries["entry"]
