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
from backfill_dagster.records.filters import reason_left_out
from backfill_dagster.records.outcomes import FilterReason
from backfill_dagster.records.runs import Run, read_run
from backfill_dagster.records.tables import TABLE_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.records.blocks import Failure
    from backfill_dagster.records.settings import RecordSettings

# Bounds of what is decoded at once: large enough for vectorised steps to pay, and hostile blocks stay bounded.
CHUNK_RECORDS = 32_768
CHUNK_BYTES = 3 * 1024 * 1024

_LEFT_OUT = pl.Schema(dict.fromkeys(("did", "collection", "table", "reason"), pl.String()))


@dataclass(frozen=True, slots=True)
class TransformedChunk:
    """What became of a chunk.

    `tables`: rows of each table, in one or more frames. `rejected`: rows with `reason` and `detail`. `filtered`:
    `did, collection, table, reason`.
    """

    tables: list[tuple[str, pl.DataFrame]]
    rejected: pl.DataFrame
    filtered: pl.DataFrame


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

    filtered = []
    if settings.outside == "drop":
        stays = rows.select(pl.col("in_range") | is_undated(pl.col("date_quality"))).to_series()
        if not stays.all():
            table = pl.concat([run.tables() for run in runs])
            reason = pl.lit(FilterReason.OUT_OF_RANGE.value)
            filtered.append(_left_out(rows.with_columns(table=table, reason=reason).filter(~stays)))
            rows = rows.filter(stays)
            start = 0
            for run in runs:
                length = len(run)
                run.keep(stays.slice(start, length).to_numpy())
                start += length

    rows = rows.with_columns(record_uri(), cid=cid_texts(rows["cid"]))
    tables: list[tuple[str, pl.DataFrame]] = []
    start = 0
    for run in runs:
        own = rows.slice(start, len(run))
        start += len(run)
        if len(run):
            kept, left_out = _filter(_typed(own, run, settings), run.collection, settings)
            tables += _lay_out(kept, settings.tables_of(run.collection))
            filtered.append(left_out)
    return TransformedChunk(tables, rejected, pl.concat([_LEFT_OUT.to_frame(), *filtered]))


def _read_runs(rows: pl.DataFrame, settings: RecordSettings) -> tuple[list[Run], list[Failure]]:
    runs, failures = [], []
    start = 0
    for collection, length in _lengths(rows["collection"]):
        blocks = rows["block"].slice(start, length)
        run, failed = read_run(blocks, collection, keep_record_json=settings.keeps_json_of(collection))
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


def _typed(rows: pl.DataFrame, run: Run, settings: RecordSettings) -> pl.DataFrame:
    """Add the columns that come from the records of one collection, and each row's `table`."""
    columns = run.columns(rows, keep_record_json=settings.keeps_json_of(run.collection))
    return rows.hstack(columns).with_columns(run.tables().alias("table"))


def _filter(
    rows: pl.DataFrame, collection: str, settings: RecordSettings
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part the rows of one collection that the study wants from those that it does not want for what they say."""
    wanted = settings.filters.get(collection)
    if wanted is None:
        return rows, _LEFT_OUT.to_frame()
    judged = rows.with_columns(reason=reason_left_out(wanted, rows.columns))
    is_kept = judged["reason"].is_null()
    return judged.filter(is_kept), _left_out(judged.filter(~is_kept))


def _left_out(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(_LEFT_OUT.names())


def _lay_out(rows: pl.DataFrame, tables: tuple[str, ...]) -> list[tuple[str, pl.DataFrame]]:
    """Make the rows of the tables that a collection feeds; what only a whole file tells is null as yet."""
    laid_out = []
    for name in tables:
        table = TABLE_BY_NAME[name]
        part = rows.filter(pl.col("table") == name) if len(tables) > 1 else rows
        made_here = {
            "record_type": pl.lit(table.record_type),
            "first_for_subject": pl.lit(None, pl.Boolean),
        }
        order = [
            made_here.get(column.name, pl.col(column.name)).alias(column.name) for column in table.columns
        ]
        laid_out.append((name, part.select(order)))
    return laid_out
