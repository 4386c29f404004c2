"""A chunk of one collection's records: decoded, dated, filtered, and laid out as rows of its tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress

import polars as pl

from backfill_dagster.records.blocks import Failure, Record, decode_blocks, has_reserved_key
from backfill_dagster.records.date_quality import is_undated
from backfill_dagster.records.dates import date_rows
from backfill_dagster.records.fields import text_series
from backfill_dagster.records.issues import Issues, Problem, problem_of
from backfill_dagster.records.posts import is_reply, read_posts
from backfill_dagster.records.record_json import records_as_json
from backfill_dagster.records.settings import RecordSettings
from backfill_dagster.records.subjects import read_subject_accounts, read_subject_records
from backfill_dagster.records.tables import (
    BLOCK,
    FOLLOW,
    LIKE,
    POST,
    REPOST,
    TABLE_BY_NAME,
    TABLES_OF_COLLECTION,
    Table,
)
from backfill_dagster.repos.cid import cid_text

# Bounds of what is decoded at once: large enough for vectorised steps to pay, and hostile blocks stay bounded.
CHUNK_RECORDS = 16_384
CHUNK_BYTES = 4 * 1024 * 1024

_READERS: dict[str, Callable[[list[Record], Issues], dict[str, pl.Series]]] = {
    POST: read_posts,
    LIKE: read_subject_records,
    REPOST: read_subject_records,
    FOLLOW: read_subject_accounts,
    BLOCK: read_subject_accounts,
}


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


def transform_chunk(rows: pl.DataFrame, collection: str, settings: RecordSettings) -> TransformedChunk:
    """Make table rows of records of one collection, which have a usable key.

    `rows`: the input's columns, their account's, `uri`, `rkey_time`, `may_link` and `may_reserve`.
    """
    records, failures = decode_blocks(rows["block"].to_list(), rows["may_link"].to_list())
    rejected, rows = _part(rows, failures)
    rows = rows.with_columns(_table(records, collection))
    rows = date_rows(rows, records, settings.period)

    out_of_range = rows.clear()
    if settings.outside == "drop":
        stays = rows.select(pl.col("in_range") | is_undated(pl.col("date_quality"))).to_series()
        out_of_range = rows.filter(~stays)
        rows, records = rows.filter(stays), list(compress(records, stays))

    rows = _fill(rows, records, collection, settings)
    tables = {name: _lay_out(rows, TABLE_BY_NAME[name]) for name in TABLES_OF_COLLECTION[collection]}
    return TransformedChunk(tables, rejected, out_of_range)


def _part(rows: pl.DataFrame, failures: list[Failure]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part the rows whose blocks could not be decoded from the others."""
    if not failures:
        return rows.clear(), rows
    positions = {failure.position for failure in failures}
    failed = pl.Series([position in positions for position in range(rows.height)])
    rejected = rows.filter(failed).with_columns(
        reason=text_series([failure.reason.value for failure in failures]),
        detail=text_series([failure.detail for failure in failures]),
    )
    return rejected, rows.filter(~failed)


def _table(records: list[Record], collection: str) -> pl.Expr:
    if collection != POST:
        return pl.lit(TABLES_OF_COLLECTION[collection][0]).alias("table")
    replies = pl.Series([is_reply(record) for record in records], dtype=pl.Boolean)
    return pl.when(replies).then(pl.lit("replies")).otherwise(pl.lit("posts")).alias("table")


def _fill(
    rows: pl.DataFrame, records: list[Record], collection: str, settings: RecordSettings
) -> pl.DataFrame:
    """Add the columns that come from the records themselves, and their keys as text."""
    issues = Issues()
    _check_type(records, collection, issues)
    for row in rows["may_reserve"].arg_true():
        if has_reserved_key(records[row]):
            issues.add(row, "record", Problem.RESERVED_KEY)
    problems = rows["created_at_problem"]
    for row, problem in zip(problems.is_not_null().arg_true(), problems.drop_nulls(), strict=True):
        issues.add(row, "createdAt", Problem(problem))
    columns = _READERS[collection](records, issues)
    return rows.with_columns(
        cid=text_series([cid_text(cid) for cid in rows["cid"].to_list()]),
        record=records_as_json(records) if settings.keep_record_json else pl.lit(None, pl.String),
        issues=issues.column(len(records)),
        **columns,
    )


def _check_type(records: list[Record], collection: str, issues: Issues) -> None:
    types = [record.get("$type") for record in records]
    if types.count(collection) == len(types):
        return
    for row, (record, kind) in enumerate(zip(records, types, strict=True)):
        if kind != collection:
            otherwise = Problem.DIFFERS if type(kind) is str else Problem.NOT_A_STRING
            issues.add(row, "$type", problem_of(record, "$type", otherwise))


def _lay_out(rows: pl.DataFrame, table: Table) -> pl.DataFrame:
    if len(TABLES_OF_COLLECTION[table.collection]) > 1:
        rows = rows.filter(pl.col("table") == table.name)
    rows = rows.with_columns(record_type=pl.lit(table.record_type))
    return rows.select(table.schema.names()).match_to_schema(table.schema)
