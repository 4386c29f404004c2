"""Turns packs into typed records on disk: the stage between verified repositories and the tables.

A pack never changes, so its conversion is a function of the pack and of the study's record settings; it is done
once and done again only if those settings change. `counts` is written last and is the commit: it says what became
of every record of every account of the pack, and which settings it was made with. Before it comes the index of the
windows that the pack has rows in; a pack without an index has no rows for the tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.work_cost import WorkCost
from backfill_dagster.records.file_batches import file_batches
from backfill_dagster.records.first_for_subject import SUBJECT_COLUMNS, settle_over_files
from backfill_dagster.records.not_taken import count_not_taken, list_not_taken
from backfill_dagster.records.outcomes import Fate, FilterReason
from backfill_dagster.records.tables import COUNTS_SCHEMA, TABLES
from backfill_dagster.records.transform import transform_records
from backfill_dagster.records.window_index import (
    INDEX_SCHEMA,
    INDEXED_COLUMNS,
    ROWS_IN_GROUP,
    index_files,
    index_key,
)
from backfill_dagster.repos.outcomes import Obtained
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.storage import StudyStorage, partition_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from backfill_dagster.records.filter_lists import StoredFilter
    from backfill_dagster.records.settings import RecordSettings
    from backfill_dagster.records.windows import Granularity
    from backfill_dagster.stores.location import Location

# Raised whenever the same record would become another row, so that what is stored is converted again.
CONVERSION_VERSION = 3

_FINGERPRINT = "settings"
_FILES = "files"


@dataclass(frozen=True, slots=True)
class PackFiles:
    """One pack to convert: where its rows are, and its blocks files with their SHA-256, as keys of the storage."""

    pds_host: str
    pack: str
    key: str
    blocks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What became of a pack's records, summed over its accounts: (table, fate, reason) and how many.

    And what the conversion took.
    """

    pds_host: str
    pack: str
    counts: tuple[tuple[str | None, str, str | None, int], ...]
    cost: WorkCost = field(default_factory=WorkCost, compare=False)


def convert_pack(
    root: Location,
    pack: PackFiles,
    settings: RecordSettings,
    filters: Mapping[str, StoredFilter],
    granularity: Granularity,
    fingerprint: str,
) -> ConversionReport:
    """Decode, type and classify every record of one pack, one blocks file in memory at a time.

    `filters` are those of the study by collection, whose lists are read here. `fingerprint` stands for all settings.
    The index is for the windows of this granularity.

    Raises StorageError for a blocks file that is not the one that the pack was written with, or a changed list.
    """
    storage = StudyStorage(root)
    # From here on the pack counts as not converted: what is written over is of other settings, and an interrupted
    # conversion must not pass for a finished one when those settings come back.
    index = index_key(pack.pds_host, pack.pack)
    storage.remove(_counts_key(pack.pds_host, pack.pack))
    storage.remove(index)
    accounts = (
        storage.scan([pack.key], PACK_SCHEMA)
        .filter(pl.col("outcome") == "complete")
        .select(
            *("did", "pds", "repo_rev", "fetched_at", "purged", "not_taken"),
            # Packs of older versions hold whole repositories.
            pl.col("obtained").fill_null(Obtained.REPO.value),
        )
        .collect()
    )
    read = {collection: wanted.load(storage, accounts["did"]) for collection, wanted in filters.items()}
    settings = replace(settings, filters=read)
    not_taken = list_not_taken(accounts)
    counts = [_count_purged(accounts), count_not_taken(not_taken)]
    accounts = accounts.drop("not_taken")
    indexed = [pl.DataFrame(schema=INDEX_SCHEMA)]
    files: dict[str, int] = {}
    for number in range(len(pack.blocks)):
        converted = _convert_file(storage, pack, number, accounts, settings)
        counts += converted.counts
        files |= converted.files
        indexed.append(
            index_files(
                converted.tables,
                pack=pack.pack,
                number=number,
                fingerprint=fingerprint,
                granularity=granularity,
            )
        )
    # Behind those of the last blocks file.
    target = records_key(pack.pds_host, "rejects", pack.pack, len(pack.blocks))
    files |= _write_or_remove(storage, target, not_taken)
    whole_index = pl.concat(indexed)
    for key, rows in _settled_firsts(storage, pack, whole_index):
        files |= _write_or_remove(storage, key, rows)
    files[index] = storage.write(index, whole_index).bytes
    total = _sum_counts(counts)
    told = {_FINGERPRINT: fingerprint, _FILES: json.dumps(files)}
    storage.write(_counts_key(pack.pds_host, pack.pack), total, metadata=told)
    summed = total.group_by("table", "fate", "reason").agg(pl.col("records").sum()).sort(pl.all())
    return ConversionReport(pack.pds_host, pack.pack, tuple(summed.iter_rows()), storage.clock.cost())


@dataclass(frozen=True, slots=True)
class _ConvertedFile:
    """What a blocks file was converted to: what the index is made of by table, and the bytes of each file by key."""

    tables: dict[str, tuple[pl.DataFrame, int]]
    files: dict[str, int]
    counts: list[pl.DataFrame]


def _convert_file(
    storage: StudyStorage, pack: PackFiles, number: int, accounts: pl.DataFrame, settings: RecordSettings
) -> _ConvertedFile:
    """Convert the n-th blocks file of a pack; what it had been converted to with other settings is removed."""
    key, sha256 = pack.blocks[number]
    if storage.sha256(key) != sha256:
        raise StorageError(
            f"{storage.where(key)} is damaged: its bytes are not those that were written. Delete it and run the "
            "study again: its accounts are then fetched anew"
        )
    converted: dict[str, tuple[pl.DataFrame, int]] = {}
    files: dict[str, int] = {}
    rejects, counts = [], []
    for batch in file_batches(storage, key, settings):
        done = transform_records(batch.read(storage, key), accounts, settings, batch.unread)
        for table, rows in done.tables.items():
            if not rows.is_empty():
                target = records_key(pack.pds_host, table, pack.pack, number)
                size = storage.write(target, rows, row_group=ROWS_IN_GROUP).bytes
                converted[table] = rows.select(INDEXED_COLUMNS), size
        rejects.append(done.rejects)
        counts.append(done.counts)
        # Not kept while the next batch is converted.
        del done, rows
    for table in TABLES:
        target = records_key(pack.pds_host, table, pack.pack, number)
        if table in converted:
            files[target] = converted[table][1]
        else:
            storage.remove(target)
    target = records_key(pack.pds_host, "rejects", pack.pack, number)
    files |= _write_or_remove(storage, target, pl.concat(rejects))
    in_order = {table: converted[table] for table in TABLES if table in converted}
    return _ConvertedFile(in_order, files, counts)


def _write_or_remove(storage: StudyStorage, key: str, rows: pl.DataFrame) -> dict[str, int]:
    """Store rows, or nothing if there are none; returns the size in bytes of what is stored, by key."""
    if rows.is_empty():
        storage.remove(key)
        return {}
    return {key: storage.write(key, rows, row_group=ROWS_IN_GROUP).bytes}


def _settled_firsts(
    storage: StudyStorage, pack: PackFiles, index: pl.DataFrame
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the converted files that change when accounts with rows in several are settled over all of them."""
    if len(pack.blocks) < 2:
        return
    number = pl.col("number")
    spread = index.group_by("table", "did").agg(number.unique()).filter(number.list.len() > 1)
    for table in SUBJECT_COLUMNS:
        own = spread.filter(table=table)
        numbers = own["number"].explode().unique().sort()
        keys = [records_key(pack.pds_host, table, pack.pack, each) for each in numbers]
        if keys:
            yield from settle_over_files(storage, table, keys, own["did"].to_list())


def records_key(pds_host: str, kind: str, pack: str, number: int) -> str:
    """Return where the rows of one table (or `rejects`) of a pack's n-th blocks file are stored."""
    return f"records/{partition_folder(pds_host)}/{kind}/{pack}-{number}.parquet"


def converted_packs(
    storage: StudyStorage, packs: Iterable[tuple[str, str]], fingerprint: str
) -> set[tuple[str, str]]:
    """Return those packs whose conversion with these settings is stored, with all of its files in their size.

    They are given as (PDS host, pack).
    """
    sizes = storage.sizes("records")
    keys = {key: one for one in packs if (key := _counts_key(*one)) in sizes}
    found = set()
    for key, told in storage.metadata_of(keys).items():
        files: dict[str, int] = json.loads(told.get(_FILES, "{}"))
        if told.get(_FINGERPRINT) == fingerprint and files.items() <= sizes.items():
            found.add(keys[key])
    return found


def read_counts(storage: StudyStorage, packs: Iterable[tuple[str, str]]) -> pl.DataFrame:
    """Return the counts (COUNTS_SCHEMA and `pack`) of these packs, given as (PDS host, pack)."""
    keys = {_counts_key(host, pack): pack for host, pack in packs}
    stored = {key: keys[key] for key in storage.sizes_of(keys)}
    return storage.collect([storage.scan_named(stored, COUNTS_SCHEMA, "pack")], stored)[0]


def _counts_key(pds_host: str, pack: str) -> str:
    return f"records/{partition_folder(pds_host)}/counts/{pack}.parquet"


def _count_purged(accounts: pl.DataFrame) -> pl.DataFrame:
    """Count the records of the accounts' trees that are not stored because they were purged (COUNTS_SCHEMA)."""
    return accounts.filter(pl.col("purged") > 0).select(
        did="did",
        collection=pl.lit(None, pl.String),
        table=pl.lit(None, pl.String),
        fate=pl.lit(Fate.FILTERED.value),
        reason=pl.lit(FilterReason.PURGED.value),
        records="purged",
    )


def _sum_counts(counts: list[pl.DataFrame]) -> pl.DataFrame:
    whole = pl.concat([pl.DataFrame(schema=COUNTS_SCHEMA), *counts])
    keys = [name for name in COUNTS_SCHEMA if name != "records"]
    return whole.group_by(keys).agg(pl.col("records").sum()).select(COUNTS_SCHEMA.names()).sort(keys)
