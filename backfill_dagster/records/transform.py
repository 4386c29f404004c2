"""Stage 4 as one function: verified record blocks of any repositories -> tables, rejects and counts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from backfill_dagster.errors import ReconciliationError
from backfill_dagster.records.accounting import add_counts, count, list_rejects, only_table, record_uri
from backfill_dagster.records.blocks import MAX_RECORD_BYTES, may_hold_links, may_hold_reserved_keys
from backfill_dagster.records.chunks import chunks, transform_chunk
from backfill_dagster.records.outcomes import Fate, FilterReason, RejectReason
from backfill_dagster.records.record_keys import is_collection, is_record_key, tid_times
from backfill_dagster.records.settings import RecordSettings
from backfill_dagster.records.tables import COLLECTIONS, RECORD_TABLES
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX, RAW_PREFIX


@dataclass(frozen=True, slots=True)
class TransformedRecords:
    """What became of a batch of records.

    `tables` holds, by table and in input order, the rows that are kept: the dated ones that the study wants,
    and all undated ones, which `date_quality` tells. `rejects` (`REJECTS_SCHEMA`) is in input order too. `counts`
    (`COUNTS_SCHEMA`) sums to the number of input records of every account.
    """

    tables: dict[str, pl.DataFrame]
    rejects: pl.DataFrame
    counts: pl.DataFrame


def transform_records(
    blocks: pa.Table | pa.RecordBatch, accounts: pl.DataFrame, settings: RecordSettings
) -> TransformedRecords:
    """Make typed rows of verified record blocks; every record ends kept, filtered or rejected.

    `blocks`: did, collection, rkey (text), cid (the CID's 36 bytes), block (bytes). `accounts`, one row for every
    DID among them: did, pds, repo_rev (text), fetched_at (datetime[us, UTC]). Nothing that a record holds makes
    this raise: a ReconciliationError says that the frames do not belong together, or that a record got lost.
    """
    rows = _settle_by_key(_join_accounts(pl.DataFrame(blocks), accounts), settings)
    is_unwanted = pl.col("reason") == FilterReason.UNWANTED_TYPE
    counts = [count(rows.filter(is_unwanted), only_table(), Fate.FILTERED, pl.col("reason"))]
    rejected = [rows.filter(~is_unwanted)]
    tables = {table.name: [table.schema.to_frame()] for table in RECORD_TABLES}

    undecided = _look_at_whole_column(rows.filter(pl.col("reason").is_null()))
    with _collector_paused():
        for collection in COLLECTIONS:
            for chunk in chunks(undecided.filter(pl.col("collection") == collection)):
                done = transform_chunk(chunk, collection, settings)
                for name, frame in done.tables.items():
                    tables[name].append(frame)
                rejected.append(done.rejected.select(rows.columns))
                if done.out_of_range.height:
                    reason = pl.lit(FilterReason.OUT_OF_RANGE.value)
                    counts.append(count(done.out_of_range, pl.col("table"), Fate.FILTERED, reason))

    kept = {name: pl.concat(frames) for name, frames in tables.items()}
    counts += [count(frame, pl.lit(name), Fate.KEPT, pl.lit(None)) for name, frame in kept.items()]
    all_rejected = pl.concat(rejected).sort("row")
    counts.append(count(all_rejected, only_table(), Fate.REJECTED, pl.col("reason")))
    result = TransformedRecords(kept, list_rejects(all_rejected), add_counts(counts))
    _reconcile(rows, result.counts)
    return result


def _join_accounts(blocks: pl.DataFrame, accounts: pl.DataFrame) -> pl.DataFrame:
    """Give every record its account's columns, and its place in the input as `row`."""
    records = blocks.select(
        pl.col("did", "collection", "rkey").cast(pl.String),
        pl.col("cid", "block").cast(pl.Binary).fill_null(b""),
    )
    known = accounts.select("did", "pds", "repo_rev", pl.col("fetched_at").cast(pl.Datetime("us", "UTC")))
    if known["did"].is_duplicated().any():
        raise ReconciliationError("the accounts of a batch of records name a DID twice")
    strangers = records.select(pl.col("did").unique()).join(known, on="did", how="anti").height
    if strangers:
        raise ReconciliationError(
            f"a batch holds records of {strangers} DIDs that are not among its accounts"
        )
    return records.join(known, on="did", how="left", maintain_order="left").with_row_index("row")


def _settle_by_key(rows: pl.DataFrame, settings: RecordSettings) -> pl.DataFrame:
    """Add `reason` and `detail` where a record's fate shows without decoding it; null elsewhere.

    A collection that the study does not want is filtered, whatever else may be wrong with the record.
    """
    cid, size = pl.col("cid"), pl.col("block").bin.size()
    has_length = cid.bin.size() == CID_BYTES
    return rows.with_columns(
        reason=pl.when(~is_collection(pl.col("collection")))
        .then(pl.lit(RejectReason.BAD_KEY.value))
        .when(~pl.col("collection").is_in(sorted(settings.record_types)))
        .then(pl.lit(FilterReason.UNWANTED_TYPE.value))
        .when(~is_record_key(pl.col("rkey")))
        .then(pl.lit(RejectReason.BAD_KEY.value))
        .when(has_length & cid.bin.starts_with(RAW_PREFIX))
        .then(pl.lit(RejectReason.RAW_CODEC.value))
        .when(~(has_length & cid.bin.starts_with(DAG_CBOR_PREFIX)))
        .then(pl.lit(RejectReason.BAD_CID.value))
        .when(size > MAX_RECORD_BYTES)
        .then(pl.lit(RejectReason.TOO_LARGE.value)),
        detail=pl.when(size > MAX_RECORD_BYTES).then(pl.format("{} bytes", size)),
    )


def _look_at_whole_column(rows: pl.DataFrame) -> pl.DataFrame:
    """Add what needs no decoded record: at once, because a step over a column costs more than its rows do."""
    return rows.with_columns(
        record_uri(),
        rkey_time=tid_times(rows["rkey"]),
        may_link=may_hold_links(pl.col("block")),
        may_reserve=may_hold_reserved_keys(pl.col("block")),
    )


def _reconcile(rows: pl.DataFrame, counts: pl.DataFrame) -> None:
    came = rows.group_by("did").agg(records=pl.len().cast(pl.Int64)).sort("did")
    went = counts.group_by("did").agg(pl.col("records").sum()).sort("did")
    if not came.equals(went):
        raise ReconciliationError("a batch's records that were kept, filtered and rejected are not all of it")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from searching the decoded records, which hold no cycles.

    It triples the time of decoding otherwise.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
