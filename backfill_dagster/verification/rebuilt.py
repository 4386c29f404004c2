"""Everything that is made of packs, made again and compared: converted records, tables, accounts, what is derived.

In two links, so that no more is on disk at once than a pack's records or a table's part: the stored records are what
the packs give, and the stored tables are what the stored records give.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from backfill_dagster import accounting, derivation, filtering
from backfill_dagster.derived.build import FOLDER as DERIVED_FOLDER
from backfill_dagster.derived.engaged import ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY
from backfill_dagster.derived.feed_use import SHOWN_FOLDER
from backfill_dagster.dictionary.written import DESCRIPTOR_KEY, READABLE_KEY
from backfill_dagster.fingerprints import records_fingerprint
from backfill_dagster.pipeline import pack_files, record_settings, record_tables
from backfill_dagster.purge.tombstones import TOMBSTONES_KEY
from backfill_dagster.records.filter_lists import FILTERS_FOLDER
from backfill_dagster.records.windows import UNDATED, granularity_of, study_windows
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    SOURCE_REJECTS_KEY,
    source_dids,
    study_tables,
)
from backfill_dagster.tables.ledger import LEDGER_FOLDER
from backfill_dagster.verification.again import Conversion
from backfill_dagster.verification.mirror import differences, mirror
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from backfill_dagster.config.study import Study
    from backfill_dagster.tables.parts import Part

# What is made of the tables, and what that takes: all the rest that a study's stages read.
_MADE = (ACCOUNTS_KEY, ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY, DESCRIPTOR_KEY, READABLE_KEY)
_LINKED = (SOURCE_KEY, SOURCE_REJECTS_KEY, DIRECTORY_KEY, TOMBSTONES_KEY)
_UNREAD = re.compile(r"repos/[^/]+/[^/]+\.blocks-[^/]+|records/[^/]+/(?!counts/)[^/]+/[^/]+")
_LINKED_FOLDERS = ("repos", "records", "tables", UNDATED, LEDGER_FOLDER, FILTERS_FOLDER, SHOWN_FOLDER)


def conversions(study: Study, packs: Collection[tuple[str, str]]) -> Iterator[Conversion]:
    """Yield the conversions of the packs (PDS host, pack) that hold snapshots."""
    storage = StudyStorage(study.location)
    settings, filters = record_settings(study), filtering.stored_filters(study)
    granularity, fingerprint = granularity_of(study.time_range), records_fingerprint(study)
    stored = _converted_files(storage)
    for host, pack, key in pack_keys(storage):
        if (host, pack) in packs:
            files = pack_files(storage, host, pack, key)
            yield Conversion(
                files, tuple(stored.get((host, pack), ())), settings, filters, granularity, fingerprint
            )


def _converted_files(storage: StudyStorage) -> dict[tuple[str, str], list[str]]:
    """Return the converted files of each pack, by (PDS host, pack)."""
    hosts = {partition_folder(host): host for host, *_ in pack_keys(storage)}
    stored: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for key in storage.keys("records"):
        _, folder, _, name = key.split("/")
        stored[hosts.get(folder, folder), name.partition(".")[0].partition("-")[0]].append(key)
    return stored


def check_table_files(study: Study) -> list[Found]:
    """Say which tables are not up to date, and which of their files are there and should not be, or the reverse."""
    storage, windows = StudyStorage(study.location), [*study_windows(study.time_range), UNDATED]
    found: list[Found] = []
    expected: set[str] = set()
    for name, table in record_tables(study).items():
        found += [
            Found(FileProblem.NOT_UP_TO_DATE, table.folder(window), name) for window in table.stale(windows)
        ]
        expected.update(table.files())
    stored = {*storage.keys("tables", "*"), *storage.keys(UNDATED, "*")}
    found += [
        Found(FileProblem.ROWS_DIFFER, key, "it should not be there") for key in sorted(stored - expected)
    ]
    found += [Found(FileProblem.ROWS_DIFFER, key, "it should be there") for key in sorted(expected - stored)]
    return found


def table_parts(study: Study, shown: Path) -> Iterator[Part]:
    """Yield the parts of all tables, with those of their files that are there.

    Which accounts are shown is written to a file, `shown`, that must be there for as long as the parts are worked on.
    """
    storage = StudyStorage(study.location)
    stored = {*storage.keys("tables"), *storage.keys(UNDATED)}
    for table in record_tables(study).values():
        if not shown.exists():
            # It is the same for all of them.
            table.store_shown(shown)
        for part in table.parts(shown):
            yield replace(part, files=tuple(file for file in part.files if file.key in stored))


def check_derived(study: Study) -> list[Found]:
    """Make the table of accounts, the derived tables and the lists of the engaged again, and compare.

    As much is on disk meanwhile as these take.
    """
    storage = StudyStorage(study.location)
    files = [file for folder in _LINKED_FOLDERS for file in storage.listed(folder)]
    sizes = {file.key: file.bytes for file in files}
    # Nearly all of a study's bytes; it is enough to know that they are there.
    unread = {key: size for key, size in sizes.items() if _UNREAD.fullmatch(key)}
    keys = [*(key for key in sizes if key not in unread), *(key for key in _LINKED if storage.exists(key))]
    with storage.scratch() as folder:
        elsewhere = study.storage.model_copy(update={"path": folder})
        twin = study.model_copy(update={"storage": elsewhere})
        again = mirror(storage, twin.root, keys, unread)
        accounting.build_accounts(twin)
        tables, windows = study_tables(twin), study_windows(twin.time_range)
        if twin.discovery is not None:
            derivation.discover_engaged(twin, tables, source_dids(twin), again=True)
        for name in derivation.derived_names(twin):
            derivation.build_derived(twin, tables, name, windows, again=True)
        made = [*again.keys(DERIVED_FOLDER), *(key for key in _MADE if again.exists(key))]
        stored = [*storage.keys(DERIVED_FOLDER), *(key for key in _MADE if storage.exists(key))]
        found = differences(storage, again, stored, made)
    return [Found(FileProblem.DERIVED_DIFFERS, *seen) for seen in found]
