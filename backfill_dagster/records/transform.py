"""Stage 4 as one function: verified record blocks of any repositories -> tables, rejects and counts."""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from backfill_dagster.errors import ReconciliationError
from backfill_dagster.records.accounting import Books, count_by, list_rejects, only_table, record_uri
from backfill_dagster.records.blocks import MAX_RECORD_BYTES
from backfill_dagster.records.chunks import chunks, transform_chunk
from backfill_dagster.records.filters import is_another_version, is_off_the_list
from backfill_dagster.records.first_for_subject import mark_firsts
from backfill_dagster.records.outcomes import Fate, FilterReason, RejectReason
from backfill_dagster.records.record_keys import is_collection, is_record_key, tid_times
from backfill_dagster.records.settings import RecordSettings
from backfill_dagster.records.tables import TABLE_BY_NAME, TABLES
from backfill_dagster.repos.cid import CID_BYTES, DAG_CBOR_PREFIX, RAW_PREFIX

_EMPTY = {name: table.schema.to_frame() for name, table in TABLE_BY_NAME.items()}
_FILTERED_BY_KEY = [
    FilterReason.UNWANTED_TYPE.value,
    FilterReason.NOT_IN_URIS.value,
    FilterReason.EDITED.value,
]


@dataclass(frozen=True, slots=True)
class TransformedRecords:
    """What became of a batch of records.

    `tables` holds, by table, collection and in input order, the rows that are kept: those that the study wants,
    dated or not, which `date_quality` tells. `rejects` (`REJECTS_SCHEMA`) is in input order too. `counts`
    (`COUNTS_SCHEMA`) sums to the number of input records of every account.
    """

    tables: dict[str, pl.DataFrame]
    rejects: pl.DataFrame
    counts: pl.DataFrame


def transform_records(
    blocks: pa.Table | pa.RecordBatch | pl.DataFrame,
    accounts: pl.DataFrame,
    settings: RecordSettings,
    unread: Sequence[tuple[str, str, int]] = (),
) -> TransformedRecords:
    """Make typed rows of verified record blocks; every record ends kept, filtered or rejected.

    `blocks`: did, collection, rkey (text), cid (the CID's 36 bytes), block (bytes). `accounts`, one row for every
    DID among them: did, pds, repo_rev, obtained (text), fetched_at (datetime[us, UTC]). `unread` counts records (DID,
    collection, how many) that belong to the batch, but were left out because the study does not want their type.
    `first_for_subject` is about the rows of this batch.

    Nothing that a record holds makes this raise: a ReconciliationError says that the frames do not belong together,
    or that a record got lost.
    """
    rows = _settled_by_key(pl.DataFrame(blocks).rechunk(), accounts, settings)
    books = Books()
    decided = rows.filter(pl.col("reason").is_not_null())
    is_unwanted = pl.col("reason").is_in(_FILTERED_BY_KEY)
    unwanted = count_by(decided.filter(is_unwanted), "did", "collection", "reason")
    passed_over = ((*kind, FilterReason.UNWANTED_TYPE.value, records) for *kind, records in unread)
    for did, collection, reason, records in (*unwanted, *passed_over):
        books.add(
            records,
            did=did,
            collection=collection,
            table=only_table(collection, settings),
            fate=Fate.FILTERED,
            reason=reason,
        )
    rejected = [decided.filter(~is_unwanted)]
    tables: dict[str, list[pl.DataFrame]] = {table: [] for table in TABLES}

    undecided = rows.filter(pl.col("reason").is_null()) if decided.height else rows
    with _collector_paused():
        for chunk in chunks(_by_collection(undecided)):
            done = transform_chunk(chunk, settings)
            for name, frame in done.tables:
                tables[name].append(frame)
            if done.rejected.height:
                rejected.append(done.rejected.select(rows.columns))
            for did, collection, table, reason, records in count_by(done.filtered, *done.filtered.columns):
                books.add(
                    records,
                    did=did,
                    collection=collection,
                    table=table,
                    fate=Fate.FILTERED,
                    reason=reason,
                )

    kept = {name: mark_firsts(pl.concat([_EMPTY[name], *frames]), name) for name, frames in tables.items()}
    for name, frame in kept.items():
        for did, collection, records in _count_kept(frame, TABLE_BY_NAME[name].collection):
            books.add(records, did=did, collection=collection, table=name, fate=Fate.KEPT, reason=None)
    all_rejected = pl.concat(rejected)
    if all_rejected.height:
        all_rejected = all_rejected.sort("row")
    for did, collection, reason, records in count_by(all_rejected, "did", "collection", "reason"):
        books.add(
            records,
            did=did,
            collection=collection,
            table=only_table(collection, settings),
            fate=Fate.REJECTED,
            reason=reason,
        )
    _reconcile([*count_by(rows, "did"), *((did, records) for did, _, records in unread)], books)
    return TransformedRecords(kept, list_rejects(all_rejected), books.frame())


def _count_kept(rows: pl.DataFrame, collection: str | None) -> list[tuple[str, str, int]]:
    """Count a table's rows by account and collection, which is the one given if the table has but one."""
    if collection is None:
        return [(did, kind, records) for did, kind, records in count_by(rows, "did", "collection")]
    return [(did, collection, records) for did, records in count_by(rows, "did")]


def _settled_by_key(blocks: pl.DataFrame, accounts: pl.DataFrame, settings: RecordSettings) -> pl.DataFrame:
    """Give every record its account's columns, its place in the input as `row`, and `reason` and `detail`.

    These two say what becomes of a record where that shows without decoding it, and are null elsewhere. What the study
    does not want, by its collection or because it is not on an allow-list, is filtered, whatever else may be wrong with
    the record.
    """
    known = accounts.select(
        "did",
        "pds",
        "repo_rev",
        "obtained",
        pl.col("fetched_at").cast(pl.Datetime("us", "UTC")),
        is_known=True,
    )
    if known["did"].is_duplicated().any():
        raise ReconciliationError("the accounts of a batch of records name a DID twice")
    collection, cid, size = pl.col("collection"), pl.col("cid"), pl.col("block").bin.size()
    has_length = cid.bin.size() == CID_BYTES
    reason = (
        pl.when(~is_collection(collection))
        .then(pl.lit(RejectReason.BAD_KEY.value))
        .when(~collection.is_in(sorted(settings.collections)))
        .then(pl.lit(FilterReason.UNWANTED_TYPE.value))
        .when(is_off_the_list(settings.filters, record_uri()))
        .then(pl.lit(FilterReason.NOT_IN_URIS.value))
        .when(~is_record_key(pl.col("rkey")))
        .then(pl.lit(RejectReason.BAD_KEY.value))
        .when(has_length & cid.bin.starts_with(RAW_PREFIX))
        .then(pl.lit(RejectReason.RAW_CODEC.value))
        .when(~(has_length & cid.bin.starts_with(DAG_CBOR_PREFIX)))
        .then(pl.lit(RejectReason.BAD_CID.value))
        .when(size > MAX_RECORD_BYTES)
        .then(pl.lit(RejectReason.TOO_LARGE.value))
    )
    rows = (
        blocks.lazy()
        .select(
            pl.col("did", "collection", "rkey").cast(pl.String),
            pl.col("cid", "block").cast(pl.Binary).fill_null(b""),
        )
        .join(known.lazy(), on="did", how="left", maintain_order="left")
        .with_row_index("row")
        .with_columns(
            reason=reason, detail=pl.when(size > MAX_RECORD_BYTES).then(pl.format("{} bytes", size))
        )
        .collect(engine="in-memory")
    )
    if rows["is_known"].null_count():
        strangers = rows.filter(pl.col("is_known").is_null())["did"].n_unique()
        raise ReconciliationError(
            f"a batch holds records of {strangers} DIDs that are not among its accounts"
        )
    return _without_edited(rows.drop("is_known"), settings)


def _without_edited(rows: pl.DataFrame, settings: RecordSettings) -> pl.DataFrame:
    """Give those records their reason that are to be kept in another version alone."""
    if all(wanted.cids is None for wanted in settings.filters.values()):
        return rows
    is_edited = is_another_version(settings.filters, rows.select("collection", "cid", uri=record_uri()))
    is_listed = pl.col("reason").ne_missing(FilterReason.UNWANTED_TYPE.value) & pl.col("reason").ne_missing(
        FilterReason.NOT_IN_URIS.value
    )
    reason = pl.when(is_edited & is_listed).then(pl.lit(FilterReason.EDITED.value)).otherwise("reason")
    return rows.with_columns(reason=reason)


def _by_collection(rows: pl.DataFrame) -> pl.DataFrame:
    """Put the rows of each collection next to each other, in the order that they have; add the time in their keys."""
    collection = rows["collection"]
    if not collection.is_sorted():
        rows = rows.sort("collection", maintain_order=True)
    return rows.with_columns(rkey_time=tid_times(rows["rkey"]))


def _reconcile(counted: list[tuple[str, int]], books: Books) -> None:
    came: Counter[str] = Counter()
    for did, records in counted:
        came[did] += records
    if dict(came) != books.by_account():
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
