"""Turns packs into typed records on disk: the stage between verified repositories and the tables.

A pack never changes, so its conversion is a function of the pack and of the study's record settings; it is done
once and done again only if those settings change. `counts` is written last and is the commit: it says what became
of every record of every account of the pack, and which settings it was made with. Before it comes the index of the
windows that the pack has rows in; a pack without an index has no rows for the tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.records.file_batches import file_batches
from backfill_dagster.records.outcomes import Fate, FilterReason
from backfill_dagster.records.tables import COUNTS_SCHEMA, TABLES
from backfill_dagster.records.transform import transform_records
from backfill_dagster.records.window_index import INDEX_SCHEMA, INDEXED_COLUMNS, index_files, index_key
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.storage import StudyStorage, partition_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from backfill_dagster.records.settings import RecordSettings
    from backfill_dagster.records.windows import Granularity

# Raised whenever the same record would become another row, so that what is stored is converted again.
CONVERSION_VERSION = 2

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
    """What became of a pack's records, summed over its accounts: (table, fate, reason) and how many."""

    pds_host: str
    pack: str
    counts: tuple[tuple[str | None, str, str | None, int], ...]


def convert_pack(
    root: Path, pack: PackFiles, settings: RecordSettings, granularity: Granularity, fingerprint: str
) -> ConversionReport:
    """Decode, type and classify every record of one pack, one blocks file in memory at a time.

    `fingerprint` stands for all settings. Its index is for the windows of this granularity.

    Raises StorageError for a blocks file that is not the one that the pack was written with.
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
        .select("did", "pds", "repo_rev", "fetched_at", "purged")
        .collect()
    )
    counts = [_count_purged(accounts)]
    indexed = [pl.DataFrame(schema=INDEX_SCHEMA)]
    files: dict[str, int] = {}
    for number, (key, sha256) in enumerate(pack.blocks):
        if storage.sha256(key) != sha256:
            raise StorageError(
                f"{storage.path(key)} is damaged: its bytes are not those that were written. Delete it and run the "
                "study again: its accounts are then fetched anew"
            )
        converted: dict[str, tuple[pl.DataFrame, int]] = {}
        rejects = []
        for batch in file_batches(storage, key, settings):
            done = transform_records(batch.read(storage, key), accounts, settings, batch.unread)
            for table, rows in done.tables.items():
                if not rows.is_empty():
                    size = storage.write(records_key(pack.pds_host, table, pack.pack, number), rows).bytes
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
        rejected = pl.concat(rejects)
        if rejected.is_empty():
            storage.remove(target)
        else:
            files[target] = storage.write(target, rejected).bytes
        in_order = {table: converted[table] for table in TABLES if table in converted}
        indexed.append(
            index_files(
                in_order, pack=pack.pack, number=number, fingerprint=fingerprint, granularity=granularity
            )
        )
    files[index] = storage.write(index, pl.concat(indexed)).bytes
    total = _sum_counts(counts)
    told = {_FINGERPRINT: fingerprint, _FILES: json.dumps(files)}
    storage.write(_counts_key(pack.pds_host, pack.pack), total, metadata=told)
    summed = total.group_by("table", "fate", "reason").agg(pl.col("records").sum()).sort(pl.all())
    return ConversionReport(pack.pds_host, pack.pack, tuple(summed.iter_rows()))


def records_key(pds_host: str, kind: str, pack: str, number: int) -> str:
    """Return where the rows of one table (or `rejects`) of a pack's n-th blocks file are stored."""
    return f"records/{partition_folder(pds_host)}/{kind}/{pack}-{number}.parquet"


def is_converted(storage: StudyStorage, pds_host: str, pack: str, fingerprint: str) -> bool:
    """Tell whether a pack's conversion with these settings is stored, with all of its files in their size."""
    key = _counts_key(pds_host, pack)
    if not storage.exists(key):
        return False
    try:
        told = pl.read_parquet_metadata(storage.path(key))
    except (OSError, pl.exceptions.PolarsError):
        return False
    files: dict[str, int] = json.loads(told.get(_FILES, "{}"))
    return told.get(_FINGERPRINT) == fingerprint and all(
        storage.exists(name) and storage.size(name) == size for name, size in files.items()
    )


def read_counts(storage: StudyStorage, packs: Iterable[tuple[str, str]]) -> pl.DataFrame:
    """Return the counts (COUNTS_SCHEMA and `pack`) of these packs, given as (PDS host, pack)."""
    keys = {_counts_key(host, pack): pack for host, pack in packs}
    stored = {key: pack for key, pack in keys.items() if storage.exists(key)}
    frames = [
        storage.scan([key], COUNTS_SCHEMA).with_columns(pack=pl.lit(pack)) for key, pack in stored.items()
    ]
    if not frames:
        return pl.DataFrame(schema={**COUNTS_SCHEMA, "pack": pl.String()})
    return pl.concat(storage.collect(frames, stored))


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
