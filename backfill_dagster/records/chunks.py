"""A chunk of records: decoded, dated, filtered, and laid out as rows of their tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.accounting import record_uri
from backfill_dagster.records.cid_texts import cid_texts
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.dates import date_rows
from backfill_dagster.records.fields import text_series
from backfill_dagster.records.runs import Run, read_run
from backfill_dagster.records.tables import TABLE_BY_NAME, TABLES_OF_COLLECTION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.records.blocks import Failure
    from backfill_dagster.records.settings import RecordSettings

# Bounds of what is decoded at once: large enough for vectorised steps to pay, and hostile blocks stay bounded.
CHUNK_RECORDS = 32_768
CHUNK_BYTES = 6 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TransformedChunk:
    """What became of a chunk: rows of tables, by table; rows with `reason` and `detail`; rows with `table`."""

    tables: dict[str, pl.DataFrame]
    rejected: pl.DataFrame
    out_of_range: pl.DataFrame


def chunks(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut rows with a `block` into chunks of at most `CHUNK_RECORDS` and about `CHUNK_BYTES`, in order."""
    by_records = pl.int_range(pl.len()) // CHUNK_RECORDS
    by_bytes = pl.col("block").bin.size().cast(pl.Int64).cum_sum() // CHUNK_BYTES
    start = 0
    for length in rows.select((by_records + by_bytes).rle().struct.field("len")).to_series():
        yield rows.slice(start, length)
        start += length


def transform_chunk(rows: pl.DataFrame, settings: RecordSettings) -> TransformedChunk:
    """Make table rows of records which have a usable key, those of each collection next to each other.

    `rows`: the input's columns, their account's, and `rkey_time`.
    """
    runs, failures = _read_runs(rows, settings)
    rejected, rows = _part(rows, failures)
    rows = date_rows(rows.drop("block"), pl.concat([run.created_at() for run in runs]), settings.period)

    out_of_range = rows.clear()
    if settings.outside == "drop":
        stays = rows.select(pl.col("in_range") | is_undated(pl.col("date_quality"))).to_series()
        if not stays.all():
            table = pl.concat([run.tables() for run in runs])
            out_of_range = rows.with_columns(table=table).filter(~stays)
            rows = rows.filter(stays)
            start = 0
            for run in runs:
                length = len(run)
                run.keep(stays.slice(start, length).to_numpy())
                start += length

    rows = rows.with_columns(record_uri(), cid=cid_texts(rows["cid"]))
    tables: dict[str, pl.DataFrame] = {}
    start = 0
    for run in runs:
        own = rows.slice(start, len(run))
        start += len(run)
        if len(run):
            tables |= _lay_out(own, run, settings)
    return TransformedChunk(tables, rejected, out_of_range)


def _read_runs(rows: pl.DataFrame, settings: RecordSettings) -> tuple[list[Run], list[Failure]]:
    runs, failures = [], []
    start = 0
    for collection, length in _lengths(rows["collection"]):
        blocks = rows["block"].slice(start, length)
        run, failed = read_run(blocks, collection, keep_record_json=settings.keep_record_json)
        runs.append(run)
        failures += [replace(failure, position=start + failure.position) for failure in failed]
        start += length
    return runs, failures


def _lengths(collections: pl.Series) -> list[tuple[str, int]]:
    """Return each collection and how many rows of it follow each other."""
    lengths = collections.rle().struct
    return list(zip(lengths.field("value"), lengths.field("len"), strict=True))


def _part(rows: pl.DataFrame, failures: list[Failure]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part the rows whose blocks could not be decoded from the others."""
    if not failures:
        return rows.clear(), rows
    positions = [failure.position for failure in failures]
    rejected = rows[positions].with_columns(
        reason=text_series([failure.reason.value for failure in failures]),
        detail=text_series([failure.detail for failure in failures]),
    )
    failed = pl.repeat(value=False, n=rows.height, eager=True).scatter(positions, True)
    return rejected, rows.filter(~failed)


def _lay_out(rows: pl.DataFrame, run: Run, settings: RecordSettings) -> dict[str, pl.DataFrame]:
    """Make the rows of the tables that a collection feeds."""
    columns = run.columns(rows["created_at_problem"], keep_record_json=settings.keep_record_json)
    whole = rows.hstack(columns)
    tables = {}
    names = TABLES_OF_COLLECTION[run.collection]
    own = run.tables()
    for name in names:
        table = TABLE_BY_NAME[name]
        part = whole.filter(own == name) if len(names) > 1 else whole
        record_type = pl.lit(table.record_type).alias("record_type")
        order = [
            record_type if column.name == "record_type" else pl.col(column.name) for column in table.columns
        ]
        tables[name] = part.select(order)
    return tables
