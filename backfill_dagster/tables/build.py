"""The tables: a study's records by type and month of creation, made from the snapshots of its accounts.

Rows come from stored conversions of packs; an account's rows are taken from the one pack that holds its snapshot,
so that a record stands in a table once. Packs are read in chunks of bounded size, and each chunk writes at most
one part into each month. A month is rewritten whole: what a rebuild leaves over is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.conversion import converted_keys
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.tables.months import MONTH_FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backfill_dagster.storage import StudyStorage

# Bytes of stored records that are read at once; in memory they take several times as much.
CHUNK_BYTES = 128 * 2**20

_UNDATED = is_undated(pl.col("date_quality"))


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """What one month of a table holds (or `undated`): rows, bytes on disk, accounts, parts."""

    partition: str
    rows: int
    bytes: int
    parts: int


def build_months(
    storage: StudyStorage,
    table: str,
    months: Sequence[str],
    rows_from: pl.DataFrame,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[PartitionReport]:
    """Write these months of one table, each whole.

    `rows_from` says which accounts are shown and where their snapshots are: `did, pds_host, pack`.
    """
    folders = {month: f"tables/{table}/month={month}" for month in months}
    month_of = pl.when(~_UNDATED).then(pl.col("created_at").dt.strftime(MONTH_FORMAT))
    return _build(storage, table, folders, month_of, rows_from, chunk_bytes)


def build_undated(
    storage: StudyStorage, table: str, rows_from: pl.DataFrame, chunk_bytes: int = CHUNK_BYTES
) -> PartitionReport:
    """Write the rows of one table that have no date that can be believed."""
    folder = {"undated": f"undated/{table}"}
    part_of = pl.when(_UNDATED).then(pl.lit("undated"))
    return _build(storage, table, folder, part_of, rows_from, chunk_bytes)[0]


def remove_other_months(storage: StudyStorage, months: Iterable[str], tables: Iterable[str]) -> list[str]:
    """Delete the folders of months and tables that the study no longer has; return their keys."""
    wanted_tables, wanted_months = set(tables), {f"month={month}" for month in months}
    removed = []
    for root in ("tables", "undated"):
        for table in storage.folders(root):
            for key in storage.keys(f"{root}/{table}"):
                month = key.split("/")[2]
                if table not in wanted_tables or (root == "tables" and month not in wanted_months):
                    storage.remove(key)
                    removed.append(key)
        storage.remove_empty_folders(root)
    return removed


def table_keys(storage: StudyStorage, table: str) -> list[str]:
    """Return the files of all months of one table and of its undated rows."""
    return [*storage.keys(f"tables/{table}"), *storage.keys(f"undated/{table}")]


def scan_table(storage: StudyStorage, table: str) -> pl.LazyFrame:
    """Return a lazy frame over all months of one table and its undated rows."""
    return storage.scan(table_keys(storage, table), TABLE_BY_NAME[table].schema)


def _build(
    storage: StudyStorage,
    table: str,
    folders: dict[str, str],
    partition_of: pl.Expr,
    rows_from: pl.DataFrame,
    chunk_bytes: int,
) -> list[PartitionReport]:
    written: dict[str, list[str]] = {partition: [] for partition in folders}
    rows = dict.fromkeys(folders, 0)
    sizes = dict.fromkeys(folders, 0)
    for number, chunk in enumerate(_chunks(storage, table, rows_from, chunk_bytes)):
        frame = _read_chunk(storage, table, chunk, rows_from, partition_of, list(folders))
        for (partition,), part in frame.partition_by("_partition", as_dict=True, include_key=False).items():
            stored = storage.write(f"{folders[partition]}/part-{number:05d}.parquet", part.sort("uri"))
            written[partition].append(stored.key)
            rows[partition] += stored.rows
            sizes[partition] += stored.bytes
    empty = pl.DataFrame(schema=TABLE_BY_NAME[table].schema)
    for partition, folder in folders.items():
        if not written[partition]:
            # An empty month is a file too, so that every glob that the study promises finds something.
            stored = storage.write(f"{folder}/part-00000.parquet", empty)
            written[partition].append(stored.key)
            sizes[partition] += stored.bytes
        for key in set(storage.keys(folder)) - set(written[partition]):
            storage.remove(key)
    return [
        PartitionReport(partition, rows[partition], sizes[partition], len(written[partition]))
        for partition in folders
    ]


def _chunks(
    storage: StudyStorage, table: str, rows_from: pl.DataFrame, chunk_bytes: int
) -> Iterator[list[tuple[str, str]]]:
    """Yield runs of (pack, key) of about so many bytes on disk."""
    packs = rows_from.select("pds_host", "pack").unique().sort("pds_host", "pack")
    chunk: list[tuple[str, str]] = []
    size = 0
    for pack, key in converted_keys(storage, table, packs.iter_rows()):
        size += storage.size(key)
        chunk.append((pack, key))
        if size >= chunk_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _read_chunk(
    storage: StudyStorage,
    table: str,
    chunk: list[tuple[str, str]],
    rows_from: pl.DataFrame,
    partition_of: pl.Expr,
    partitions: list[str],
) -> pl.DataFrame:
    schema = TABLE_BY_NAME[table].schema
    frames = [storage.scan([key], schema).with_columns(_pack=pl.lit(pack)) for pack, key in chunk]
    rows = (
        pl.concat(frames)
        .with_columns(_partition=partition_of)
        .filter(pl.col("_partition").is_in(partitions))
        .join(rows_from.lazy().select("did", _pack="pack"), on=["did", "_pack"], how="semi")
        .select(*schema.names(), "_partition")
    )
    return storage.collect([rows], [key for _, key in chunk])[0]
