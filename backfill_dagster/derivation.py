"""Stage 6 as functions of a study: the derived tables, and the lists of whom and what its accounts engaged with."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.derived.activity import StudyUserActivity
from backfill_dagster.derived.build import FOLDER, Derivation, DerivedTable
from backfill_dagster.derived.engaged import (
    ENGAGED_ACCOUNTS,
    ENGAGED_ACCOUNTS_KEY,
    ENGAGED_POSTS,
    ENGAGED_POSTS_KEY,
    SOURCES,
    find_engaged,
)
from backfill_dagster.derived.engagement import Engagement
from backfill_dagster.derived.feed_use import (
    SHOWN_FOLDER,
    PostsUsedInFeeds,
    store_shown,
    stored_shown,
    without_purged,
)
from backfill_dagster.derived.inspection import DerivedInspection, inspect_derived
from backfill_dagster.derived.stored_tables import StoredTables
from backfill_dagster.derived.threads import Threads
from backfill_dagster.dids.entries import SourceAccess
from backfill_dagster.dids.sources.by_type import entry_source, read_columns
from backfill_dagster.errors import SourceError
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.windows import granularity_of, study_windows
from backfill_dagster.storage import RowGroupWriter, StudyStorage, arrow_table
from backfill_dagster.tables.ledger import ledger_key

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from backfill_dagster.columns import Column
    from backfill_dagster.config.derived import FeedUse
    from backfill_dagster.config.study import Study
    from backfill_dagster.tables.build import PartitionReport

DERIVED: dict[str, type[Derivation]] = {
    made.name: made for made in (StudyUserActivity, Engagement, Threads, PostsUsedInFeeds)
}

_MADE_OF = "made_of"
_FEEDS_FIELD = "backfill.derived.posts_used_in_feeds.feeds"
_UNUSABLE = "unusable"
# Raised whenever the same records would make other lists of the engaged.
_ENGAGED_VERSION = 1


def derived_names(study: Study) -> list[str]:
    """Return the names of the derived tables that the study has."""
    derived = study.derived
    wanted = {
        StudyUserActivity.name: derived.study_user_activity,
        Engagement.name: derived.engagement,
        Threads.name: derived.threads,
        PostsUsedInFeeds.name: derived.posts_used_in_feeds is not None,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _derivation(study: Study, stored: StoredTables, name: str) -> Derivation:
    """Return how one derived table of a study is made of its record tables."""
    use, windows = study.derived.posts_used_in_feeds, study_windows(study.time_range)
    if name == StudyUserActivity.name:
        return StudyUserActivity(stored, windows)
    if name == PostsUsedInFeeds.name and use is not None:
        return PostsUsedInFeeds(stored, use.look_back_days, windows)
    return Engagement(stored) if name == Engagement.name else Threads(stored)


def stale_derived(study: Study, tables: Sequence[str]) -> dict[str, list[str]]:
    """Return, of each derived table, the time windows whose record tables have changed since they were built."""
    windows, stored = study_windows(study.time_range), _stored(study, tables)
    return {
        name: _table(study, _derivation(study, stored, name)).stale(windows) for name in derived_names(study)
    }


def build_derived(
    study: Study, tables: Sequence[str], name: str, windows: Sequence[str], *, again: bool = False
) -> list[PartitionReport]:
    """Bring these time windows of one derived table up to date, or build them all `again`; report each.

    What the study does not derive any more is removed.
    """
    remove_other_derived(study)
    made = _derivation(study, _stored(study, tables), name)
    return _table(study, made).build(windows, again=again)


def inspect(study: Study, tables: Sequence[str], name: str, windows: Sequence[str]) -> DerivedInspection:
    """Read the final files of these windows again; what is not what it must be is stale from then on."""
    stored = _stored(study, tables)
    made = _derivation(study, stored, name)
    table = _table(study, made)
    found = inspect_derived(stored, made, table, windows)
    table.forget(found.faulty)
    return found


def reconciles(name: str) -> bool:
    """Tell whether the rows of the record tables can be found again in a derived table's."""
    return DERIVED[name].covers is not None


def notes(study: Study, tables: Sequence[str], name: str) -> dict[str, int]:
    """Return what there is to say of a derived table as a whole, by name: of posts used in feeds, what was not."""
    if name != PostsUsedInFeeds.name:
        return {}
    made = _derivation(study, _stored(study, tables), name)
    return made.counts() if isinstance(made, PostsUsedInFeeds) else {}


def settings_stamp(study: Study) -> str:
    """Return what is another whenever other things are to be derived, or the table of feeds may have changed."""
    use = study.derived.posts_used_in_feeds
    try:
        feeds = _feeds_stamp(study, use) if use is not None else None
    except SourceError as error:
        feeds = str(error)
    parts = [part.model_dump(mode="json") for part in (study.derived, study.discovery) if part is not None]
    return json.dumps([parts, feeds])


def feeds_have_changed(study: Study) -> bool:
    """Tell whether the study's table of feeds may be another than what is stored of it; raises SourceError."""
    use = study.derived.posts_used_in_feeds
    if use is None:
        return False
    told = stored_shown(StudyStorage(study.location))
    return told is None or told[0] != _feeds_stamp(study, use)


def read_feeds(study: Study) -> Counter[str]:
    """Store what the study's table of feeds says, by post and day, unless that is stored already.

    Returns how many rows it has (`rows`), and how many of them say nothing, by reason. Raises SourceError.
    """
    use = study.derived.posts_used_in_feeds
    assert use is not None  # noqa: S101  who asks for it has looked
    storage = StudyStorage(study.location)
    told, tombstones = stored_shown(storage), Tombstones.load(storage)
    if told is not None and tombstones.unfinished:
        # What is to be purged must not wait for a source that may be gone.
        return told[1]
    stamp = _feeds_stamp(study, use)
    if told is not None and told[0] == stamp:
        return told[1]
    columns = [use.uri_column, use.time_column]
    with storage.scratch() as scratch:
        batches = read_columns(
            use.feeds, _FEEDS_FIELD, columns, SourceAccess(scratch), storage=study.storage.location
        )
        uri = pl.col(use.uri_column).str.strip_chars()
        named = (batch.select(uri=uri, time=use.time_column) for batch in batches)
        return store_shown(storage, (without_purged(batch, tombstones) for batch in named), stamp)


def _feeds_stamp(study: Study, use: FeedUse) -> str:
    stamp = entry_source(use.feeds, _FEEDS_FIELD, storage=study.storage.location).stamp()
    return json.dumps([use.model_dump(mode="json", exclude={"look_back_days"}), stamp])


def remove_other_derived(study: Study) -> None:
    """Delete the files of derived tables, and the lists, that the study does not have (any more)."""
    storage, names = StudyStorage(study.location), derived_names(study)
    others = [name for name in storage.folders(FOLDER) if name not in names]
    unwanted = [key for name in others for key in storage.keys(f"{FOLDER}/{name}")]
    unwanted += [ledger_key(name) for name in set(DERIVED) - set(names)]
    if PostsUsedInFeeds.name not in names:
        unwanted += storage.keys(SHOWN_FOLDER)
    if study.discovery is None:
        unwanted += [ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY]
    for key in unwanted:
        storage.remove(key)
    storage.remove_empty_folders(FOLDER)


def remove_all(study: Study) -> None:
    """Delete all that is derived; it is made anew of the tables."""
    storage = StudyStorage(study.location)
    for key in (*storage.keys(FOLDER), ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY):
        storage.remove(key)


@dataclass(frozen=True, slots=True)
class Discovered:
    """How many accounts and posts the study's accounts engaged with, and how many interactions named no account."""

    accounts: int
    posts: int
    unusable: int


def discover_engaged(
    study: Study, tables: Sequence[str], own: pl.Series, *, again: bool = False
) -> Discovered:
    """Write the lists of the accounts and posts that the study's accounts engaged with; `own` are their DIDs.

    If they are up to date, they are left as they are, unless they are to be written `again`.
    """
    storage = StudyStorage(study.location)
    if not (again or engaged_is_stale(study, tables, own)):
        return _discovered(storage)
    discovery = study.discovery
    assert discovery is not None  # noqa: S101  who asks for it has looked
    start = discovery.start_date or study.time_range.start_date
    end = discovery.end_date or study.time_range.end_date
    made_of = {_MADE_OF: _engaged_identity(study, tables, own)}
    accounts = posts = unusable = 0
    with storage.scratch() as scratch:
        targets = {
            ENGAGED_ACCOUNTS_KEY: scratch / "accounts.parquet",
            ENGAGED_POSTS_KEY: scratch / "posts.parquet",
        }
        with ExitStack() as files:
            to_accounts, to_posts = (
                files.enter_context(RowGroupWriter(path, arrow_table(_empty(columns)).schema, (), made_of))
                for path, columns in zip(targets.values(), (ENGAGED_ACCOUNTS, ENGAGED_POSTS), strict=True)
            )
            for lot in find_engaged(_stored(study, tables), own, discovery.interactions, start, end):
                to_accounts.write(arrow_table(lot.accounts))
                to_posts.write(arrow_table(lot.posts))
                accounts += lot.accounts.height
                posts += lot.posts.height
                unusable += lot.unusable
            to_accounts.note(_UNUSABLE, str(unusable))
        for (key, path), rows in zip(targets.items(), (accounts, posts), strict=True):
            storage.publish(path, key, rows=rows)
    return Discovered(accounts, posts, unusable)


def _discovered(storage: StudyStorage) -> Discovered:
    accounts, posts = (
        storage.collect([storage.scan([key], _empty(columns).schema).select(pl.len())], [key])[0].item()
        for key, columns in ((ENGAGED_ACCOUNTS_KEY, ENGAGED_ACCOUNTS), (ENGAGED_POSTS_KEY, ENGAGED_POSTS))
    )
    told = storage.metadata(ENGAGED_ACCOUNTS_KEY)
    return Discovered(accounts, posts, int(told[_UNUSABLE]))


def engaged_is_stale(study: Study, tables: Sequence[str], own: pl.Series) -> bool:
    """Tell whether the lists are wanted and are not those of what is stored now."""
    if study.discovery is None:
        return False
    storage, made_of = StudyStorage(study.location), _engaged_identity(study, tables, own)
    return any(
        not storage.exists(key) or storage.metadata(key).get(_MADE_OF) != made_of
        for key in (ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY)
    )


def _engaged_identity(study: Study, tables: Sequence[str], own: pl.Series) -> str:
    period = study.time_range.model_dump(mode="json", include={"start_date", "end_date"})
    wanted = study.discovery.model_dump(mode="json") if study.discovery else None
    dids = hashlib.sha256("\n".join(own.sort()).encode()).hexdigest()
    told = json.dumps([_ENGAGED_VERSION, period, wanted, dids, _stored(study, tables).identity(SOURCES)])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _stored(study: Study, tables: Sequence[str]) -> StoredTables:
    return StoredTables(StudyStorage(study.location), granularity_of(study.time_range), tables)


def _table(study: Study, derivation: Derivation) -> DerivedTable:
    time_range = study.time_range
    return DerivedTable(
        StudyStorage(study.location), derivation, granularity_of(time_range), study_windows(time_range)
    )


def _empty(columns: Sequence[Column]) -> pl.DataFrame:
    return pl.DataFrame(schema={column.name: column.dtype for column in columns})
