"""What a study asks of each account, as its `fetch` and its filters have it, and the way to fetch that.

With `fetch: records` the lists are those that are stored: reading them is the first thing that a fetch does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import filtering
from backfill_dagster.records.filter_lists import LIST_SCHEMA
from backfill_dagster.repos.asked import WHOLE_REPOS, Asks, AsksCollections, AsksRecords
from backfill_dagster.repos.fetching import FetchesRepos, Fetching
from backfill_dagster.repos.listings import FetchesListings
from backfill_dagster.repos.outcomes import Obtained
from backfill_dagster.repos.single_records import FetchesRecords
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.stores.location import Location

OBTAINED = {
    "repos": Obtained.REPO,
    "records": Obtained.RECORD_PROOF,
    "list_records": Obtained.LIST_RECORDS,
}

# While a list was never read, nobody can have been asked for what is on it.
_UNREAD = AsksCollections(())


def read_asks(study: Study) -> Asks:
    """Read the lists that say what is asked, if any do, and return what is asked now. Raises SourceError."""
    if study.fetch == "records":
        filtering.read_filter_lists(study)
    return stored_asks(study)


def stored_asks(study: Study) -> Asks:
    """Return what is asked by the lists as they are stored; opens no source."""
    if study.fetch == "repos":
        return WHOLE_REPOS
    if study.fetch == "list_records":
        return AsksCollections([*study.record_types, *study.other_record_types])
    wanted = {kind: filtered.uris for kind, filtered in filtering.stored_filters(study).items()}
    lists = [wanted[kind] for kind in (*study.record_types, *study.other_record_types)]
    if any(listed is None or not listed.digest for listed in lists):
        return _UNREAD
    # A purge takes entries out of a list and leaves the digest as it is.
    return _asks_records(
        study.location, tuple((listed.key, listed.digest, listed.kept) for listed in lists if listed)
    )


def fetching(asks: Asks) -> Fetching:
    """Return the way to fetch what is asked."""
    if isinstance(asks, AsksRecords):
        return FetchesRecords(asks)
    if isinstance(asks, AsksCollections):
        return FetchesListings(asks)
    return FetchesRepos()


@lru_cache(maxsize=2)
def _asks_records(root: Location, lists: tuple[tuple[str, str, int], ...]) -> AsksRecords:
    storage = StudyStorage(root)
    keys = [key for key, _, _ in lists]
    parts = pl.col("entry").str.splitn("/", 5).struct
    frames = [
        storage.scan([key], LIST_SCHEMA).select(
            "did", collection=parts.field("field_3"), rkey=parts.field("field_4")
        )
        for key in keys
    ]
    return AsksRecords(pl.concat(storage.collect(frames, keys)))
