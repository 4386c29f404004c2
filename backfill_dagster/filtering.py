"""The lists that a study's filters name: read from their sources, stored, and told from others by their digests.

Part of stage 4. To read a list opens its source; everything else here looks at what is stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill_dagster.config.sources import SharedSource
from backfill_dagster.connections import open_connections
from backfill_dagster.dids.entries import SourceAccess
from backfill_dagster.dids.sources.by_type import entry_source
from backfill_dagster.dids.sources.shared import SharedRecords
from backfill_dagster.errors import SourceError
from backfill_dagster.interrupts import run_interruptible
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.filter_lists import (
    FILTERS_FOLDER,
    LIST_VERSION,
    StoredFilter,
    StoredList,
    list_key,
    purge_list,
    read_list,
    remove_other_lists,
    store_list,
)
from backfill_dagster.records.list_entries import ListField, ListRejection, judge_entries
from backfill_dagster.records.tables import BLOCK, FOLLOW
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    import polars as pl

    from backfill_dagster.config.sources import Source
    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.entries import EntrySource

_FIELDS: tuple[ListField, ...] = ("uris", "subjects")


@dataclass(frozen=True, slots=True)
class NamedList:
    """A list that a filter names: the type of its records, the filter's field, and where the list comes from."""

    record_type: str
    field: ListField
    source: Source
    may_be_empty: bool

    @property
    def key(self) -> str:
        """Where it is stored."""
        return list_key(self.record_type, self.field)

    @property
    def column(self) -> str:
        """The column that is read of a source which names none."""
        return "did" if self.field == "subjects" and self.record_type in (FOLLOW, BLOCK) else "uri"

    def open(self, study: Study) -> EntrySource:
        """Return what reads it."""
        if isinstance(self.source, SharedSource) and self.field == "uris":
            return SharedRecords(self.source, "backfill.source", self.record_type)
        field = f"backfill.filters.{self.record_type}.{self.field}"
        return entry_source(self.source, field, storage=study.storage.location, column=self.column)


def named_lists(study: Study) -> list[NamedList]:
    """Return the lists that the study's filters name."""
    return [
        NamedList(kind, field, source, wanted.allow_empty)
        for kind, wanted in study.record_filters.items()
        for field in _FIELDS
        if (source := getattr(wanted, field)) is not None
    ]


def read_filter_lists(study: Study) -> list[StoredList]:
    """Read the lists that the study's filters name, and store what is in them; those named no more are removed.

    Those whose source tells that it has not changed are not read again. Nor is any while a purge is unfinished, which
    must not wait for a file that somebody has moved.

    Raises SourceError for a list that cannot be read, or that keeps no record although it is not `allow_empty`.
    """
    storage, lists = StudyStorage(study.location), named_lists(study)
    tombstones = Tombstones.load(storage)
    known = stored_lists(study)
    if tombstones.unfinished and len(known) == len(lists):
        return known
    stored = [_read_and_store(study, storage, named, tombstones) for named in lists]
    remove_other_lists(storage, {named.key for named in lists})
    return stored


def lists_stamp(study: Study) -> str:
    """Return what changes whenever the lists may have changed, without reading them; raises SourceError."""
    return repr([_stamp(named.open(study)) for named in named_lists(study)])


def lists_have_changed(study: Study) -> bool:
    """Tell whether the sources of lists say that they are others than those that are stored; raises SourceError."""
    storage = StudyStorage(study.location)
    for named in named_lists(study):
        stored, stamp = read_list(storage, named.key), _stamp(named.open(study))
        if stored is None or (stamp is not None and stamp != stored.stamp):
            return True
    return False


def stored_lists(study: Study) -> list[StoredList]:
    """Return those of the lists that the study's filters name which are stored, as they are."""
    storage = StudyStorage(study.location)
    return [stored for named in named_lists(study) if (stored := read_list(storage, named.key)) is not None]


def stored_filters(study: Study) -> dict[str, StoredFilter]:
    """Return the study's filters by record type, with their lists as they are stored."""
    lists = {stored.key: stored for stored in stored_lists(study)}
    keys = {(named.record_type, named.field): named.key for named in named_lists(study)}

    def stored(kind: str, field: ListField) -> StoredList | None:
        key = keys.get((kind, field))
        return None if key is None else lists.get(key, StoredList.unread(key))

    return {
        kind: StoredFilter(
            stored(kind, "uris"),
            stored(kind, "subjects"),
            wanted.languages,
            wanted.text,
            same_version=isinstance(wanted.uris, SharedSource) and wanted.uris.edited == "leave_out",
        )
        for kind, wanted in study.record_filters.items()
    }


def purge_lists(storage: StudyStorage, tombstones: Tombstones) -> int:
    """Take what is purged out of all lists that are stored; returns how many entries that were."""
    return sum(purge_list(storage, key, tombstones) for key in storage.keys(FILTERS_FOLDER))


def _read_and_store(
    study: Study, storage: StudyStorage, named: NamedList, tombstones: Tombstones
) -> StoredList:
    source = named.open(study)
    stamp = _stamp(source)
    known = read_list(storage, named.key)
    if known is not None and stamp is not None and known.stamp == stamp:
        return _checked(known, named, source)
    judged: list[pl.DataFrame] = []

    async def read(access: SourceAccess) -> None:
        judged.extend(
            [judge_entries(batch, named.record_type, named.field) async for batch in source.entries(access)]
        )

    async def read_with_connections() -> None:
        if not source.needs_network:
            await read(SourceAccess(scratch))
            return
        async with open_connections(study, None, study.processing) as connections:
            await read(SourceAccess(scratch, connections))

    with storage.scratch() as scratch:
        run_interruptible(read_with_connections())
    return _checked(store_list(storage, named.key, judged, tombstones, stamp), named, source)


def _stamp(source: EntrySource) -> str | None:
    """Return what a source says of itself, as a hash: it may name accounts."""
    said = source.stamp()
    return None if said is None else hashlib.sha256(f"{LIST_VERSION} {said}".encode()).hexdigest()


def _checked(stored: StoredList, named: NamedList, source: EntrySource) -> StoredList:
    if stored.is_empty and not (named.may_be_empty and stored.given == 0):
        raise SourceError(f"{source.describe()}: {_why_empty(stored)}")
    if isinstance(source, SharedRecords):
        _must_be_whole(stored, named, source)
    return stored


def _must_be_whole(stored: StoredList, named: NamedList, source: EntrySource) -> None:
    """Raise SourceError unless every record that is shared is on the list: whoever shares names each once."""
    others = {reason: number for reason, number in stored.rejected.items() if reason != ListRejection.PURGED}
    again = stored.given - stored.kept - sum(stored.rejected.values())
    if not others and not again:
        return
    said = [f"{number:,} {reason}" for reason, number in others.items()]
    if again:
        said.append(f"{again:,} stand there more than once")
    raise SourceError(
        f"{source.describe()}: not all {stored.given:,} of its records of {named.record_type} can be looked for "
        f"({', '.join(said)}), so that what is found of them would not add up"
    )


def _why_empty(stored: StoredList) -> str:
    if stored.given == 0:
        return "is empty, and would keep no record at all; set allow_empty: true beside it if that is meant"
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in stored.rejected.items())
    return (
        f"would keep no record at all: of its {stored.given:,} entries none is one that can ({reasons}). "
        "A record's AT-URI looks like at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3l5uvwqz2fk2k"
    )
