"""What became of every record that was shared: the table `rehydration` of a study that is rebuilt from shared ids.

It is told from the stored snapshots: from the keys and CIDs in their trees, or the answers for single records, and not
from what the study has made of them. So a record that was edited is told from one that was deleted, also where neither
is in the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import filtering
from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.config.sources import SharedSource
from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.records.cid_texts import cid_texts
from backfill_dagster.records.conversion import records_key
from backfill_dagster.records.filter_lists import LIST_SCHEMA
from backfill_dagster.records.list_entries import ListRejection
from backfill_dagster.records.outcomes import RejectReason
from backfill_dagster.records.tables import REJECTS_SCHEMA
from backfill_dagster.repos.blocks_file import BLOCK_COLUMNS
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.outcomes import NOT_THERE, FailureReason, LeftOut, Obtained, Outcome
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.repos.snapshots import (
    NOTHING_ASKED,
    PENDING,
    UNRESOLVED,
    StateWithoutAttempt,
    snapshots,
)
from backfill_dagster.sharing.sample import is_gone
from backfill_dagster.storage import (
    RowGroupWriter,
    StudyStorage,
    arrow_table,
    partition_folder,
    without_source,
)
from backfill_dagster.study_files import ACCOUNTS_KEY, account_lots, study_tables
from backfill_dagster.tables.accounts import HiddenReason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill_dagster.config.study import Study
    from backfill_dagster.study_files import AccountLot

REHYDRATION_KEY = "rehydration.parquet"
_ACCOUNTS_AT_ONCE = 2_000
# Of the lists, while they are put in the order of the lots; about 300 bytes each.
_ENTRIES_AT_ONCE = 1_000_000
_LOT = "lot"


class Rehydrated(ClosedSet):
    """What became of a record that was shared."""

    FOUND = "found", "It is there, with the CID that it was shared with, and stands in the tables."
    EDITED = (
        "edited",
        "Something else stands under its URI: the record was changed since it was shared.",
        "`source.edited: keep` takes it as it is now.",
    )
    DELETED = (
        "deleted",
        "Its account is there, and has no record under its URI any more; `reason` says whether that is proven.",
    )
    ACCOUNT_GONE = (
        "account_gone",
        "Its account was deactivated, deleted, suspended or taken down, or its DID leads nowhere; `reason` says which.",
        "Accounts come back: `<name>_refresh` asks again.",
    )
    UNREACHABLE = (
        "unreachable",
        "Nothing can be said of it: its account could not be read; `reason` says why.",
        "Run `<name>_retry_failed`.",
    )
    NOT_ASKED = (
        "not_asked",
        "Its account was not asked yet for what the study asks now.",
        "Run `<name>`: it goes on.",
    )
    UNUSABLE = (
        "unusable",
        "It is there, and no row can be made of it; `reason` says why.",
        "Compare the versions of the program in the shared manifest and in this study's.",
    )
    LEFT_OUT = (
        "left_out",
        "It is there, and this study's own settings leave it out: another period, a filter, `exclude`.",
        "Take the settings of the shared `rebuilt.yaml`.",
    )


# How an account is told of that its source no longer lists.
EXCLUDED = HiddenReason.ACCOUNT_LEFT_SOURCE.value

REHYDRATION_COLUMNS: tuple[Column, ...] = (
    Column("did", pl.String(), "DID of the record's account.", required=True),
    Column("table", pl.String(), "The table that it was shared of.", required=True),
    Column("uri", pl.String(), "The shared AT-URI: the key of this table.", required=True),
    Column("cid", pl.String(), "The CID that it was shared with."),
    Column("outcome", pl.String(), "What became of it.", required=True, words=(Rehydrated,)),
    Column(
        "reason",
        pl.String(),
        "Why: the account's state, its failure, how it is known to be deleted, or why no row could be made.",
        words=(
            Outcome,
            StateWithoutAttempt,
            FailureReason,
            DirectoryState,
            LeftOut,
            RejectReason,
            HiddenReason,
        ),
    ),
    Column("cid_now", pl.String(), "Of an edited record: the CID of what stands there now."),
    Column(
        "kept",
        pl.Boolean(),
        "Whether a row of the tables is of this URI: of those found, and of those edited if they are kept.",
        required=True,
    ),
    Column(
        "as_of",
        pl.Datetime("us", "UTC"),
        "When its account was read; null if it never was.",
    ),
)
REHYDRATION_SCHEMA = schema_of(REHYDRATION_COLUMNS)
COUNTS_SCHEMA = pl.Schema({"table": pl.String(), "outcome": pl.String(), "records": pl.Int64()})

# States in which a server has an account and does not hand it out just now.
_NOT_NOW = (Outcome.FAILED, Outcome.DESYNCHRONIZED, Outcome.THROTTLED)
_BLOCKS = {column.name: column.dtype for column in BLOCK_COLUMNS if column.name != "block"}


@dataclass(frozen=True, slots=True)
class Rehydration:
    """What became of the records that were shared, in numbers.

    `counts` (COUNTS_SCHEMA) has how many of each table came to which outcome. `shared` are those that the study's lists
    have of what was shared, `purged` those that it has purged, which stand in no table any more. `problems` says what
    does not agree, in words; nothing, unless there is a defect.
    """

    counts: pl.DataFrame
    shared: int
    purged: int
    problems: tuple[str, ...]

    @property
    def by_outcome(self) -> dict[str, int]:
        """How many records came to which outcome."""
        totals = self.counts.group_by("outcome").agg(pl.col("records").sum()).rows()
        known = dict(totals)
        return {outcome.value: known[outcome.value] for outcome in Rehydrated if outcome.value in known}


def is_rebuilt(study: Study) -> bool:
    """Tell whether a study is rebuilt from what another one has shared."""
    return isinstance(study.source, SharedSource)


def build_rehydration(study: Study) -> Rehydration | None:
    """Write the table of a study whose accounts are built; None, and no table, if it is rebuilt from nothing shared.

    Raises StorageError.
    """
    storage = StudyStorage(study.location)
    if not is_rebuilt(study):
        storage.remove(REHYDRATION_KEY)
        return None
    counts, rows = [COUNTS_SCHEMA.to_frame()], 0
    with storage.scratch() as scratch:
        path = scratch / REHYDRATION_KEY
        schema = arrow_table(REHYDRATION_SCHEMA.to_frame()).schema
        with RowGroupWriter(path, schema, ("did", "table", "outcome", "reason")) as writer:
            for some in _outcomes(study, storage):
                writer.write(arrow_table(some))
                rows += some.height
                counts.append(some.group_by("table", "outcome").agg(records=pl.len().cast(pl.Int64)))
        storage.publish(path, REHYDRATION_KEY, rows=rows)
    return stored_rehydration(study)


def stored_rehydration(study: Study) -> Rehydration | None:
    """Return the numbers of the table as it is stored; None if there is none."""
    storage = StudyStorage(study.location)
    if not is_rebuilt(study) or not storage.exists(REHYDRATION_KEY):
        return None
    rows = storage.scan([REHYDRATION_KEY], REHYDRATION_SCHEMA)
    kinds = ["table", "outcome"]
    counted, kept = storage.collect(
        [
            rows.group_by(kinds).agg(records=pl.len().cast(pl.Int64)),
            rows.filter("kept").group_by("table").agg(records=pl.len().cast(pl.Int64)),
        ],
        [REHYDRATION_KEY],
        engine="streaming",
    )
    lists = filtering.stored_lists(study)
    purged = sum(listed.rejected.get(ListRejection.PURGED, 0) for listed in lists)
    shared = sum(listed.kept for listed in lists) + purged
    return Rehydration(
        counted.select(COUNTS_SCHEMA.names()).sort(kinds),
        shared,
        purged,
        tuple(_problems(study, storage, counted, dict(kept.rows()), shared - purged)),
    )


def _problems(
    study: Study, storage: StudyStorage, counted: pl.DataFrame, kept: dict[str, int], listed: int
) -> Iterator[str]:
    rows = int(counted["records"].sum())
    if rows != listed:
        yield f"{rows:,} shared records have an outcome, and {listed:,} are on the lists"
    sums = storage.scan_as_it_is(ACCOUNTS_KEY).select(pl.col(study_tables(study)).sum())
    [counts] = storage.collect([sums], [ACCOUNTS_KEY])
    in_tables = sum(map(int, counts.row(0)))
    # A record can have become another kind of post since; so tables are not told apart.
    if sum(kept.values()) != in_tables:
        yield f"{sum(kept.values()):,} shared records are said to be in the tables, which have {in_tables:,} rows"


def _outcomes(study: Study, storage: StudyStorage) -> Iterator[pl.DataFrame]:
    """Yield the outcomes (REHYDRATION_SCHEMA) of the shared records of some accounts at a time."""
    keys = [listed.key for listed in filtering.stored_lists(study)]
    shared = storage.scan(keys, LIST_SCHEMA)
    if not keys:
        return
    columns = ["did", "state", "reason", "in_source", "shown"]
    [accounts] = storage.collect([storage.scan_as_it_is(ACCOUNTS_KEY).select(columns)], [ACCOUNTS_KEY])
    current = pl.concat(without_source(_snapshots(lot)) for lot in account_lots(study))
    # Also of accounts that the study does not have.
    [named] = storage.collect([shared.select("did").unique()], keys, engine="streaming")
    everybody = (
        named.join(accounts, on="did", how="left")
        .join(current, on="did", how="left")
        .sort("pds_host", "pack", "did")
    )
    lots = _lots(everybody)
    with storage.scratch() as scratch:
        by_lot = _by_lot(storage, keys, lots, scratch / "by_lot.parquet")
        yield from _of_lots(study, storage, lots, by_lot)


def _snapshots(lot: AccountLot) -> pl.DataFrame:
    how = pl.col("obtained").fill_null(Obtained.REPO.value)
    found = snapshots(lot.directory, lot.ledger)
    return found.select("did", "pds_host", "pack", as_of="fetched_at", how=how)


def _of_lots(
    study: Study, storage: StudyStorage, lots: pl.DataFrame, by_lot: pl.LazyFrame
) -> Iterator[pl.DataFrame]:
    for whole in lots.partition_by(_LOT, maintain_order=True):
        some = whole.drop(_LOT)
        [listed] = storage.collect([by_lot.filter(pl.col(_LOT) == whole[_LOT][0]).drop(_LOT)], [])
        packs = some.select("pds_host", "pack").drop_nulls().unique(maintain_order=True).rows()
        now, rejects, rows = _stored(study, storage, packs, some, listed)
        yield _judged(listed.rename({"entry": "uri"}).join(some, on="did"), now, rejects, rows)


def _lots(everybody: pl.DataFrame) -> pl.DataFrame:
    """Give accounts, which stand by pack, the number of their `lot`; a pack is not looked into for two lots."""
    first = (
        pl.when(pl.col("pack").is_null())
        .then("place")
        .otherwise(pl.col("place").min().over("pds_host", "pack"))
    )
    numbered = everybody.with_row_index("place")
    return numbered.with_columns((first // _ACCOUNTS_AT_ONCE).alias(_LOT)).drop("place")


def _by_lot(storage: StudyStorage, keys: list[str], lots: pl.DataFrame, path: Path) -> pl.LazyFrame:
    """Put what is on the lists in groups of the same lot, and return it (LIST_SCHEMA, `lot`).

    The lists are sorted by DID, of which each lot has some everywhere: they are read once, instead of once for each.
    """
    numbers = lots.select("did", _LOT)
    shared = storage.scan(keys, LIST_SCHEMA)
    schema = pl.Schema({**LIST_SCHEMA, _LOT: lots.schema[_LOT]})
    with RowGroupWriter(path, arrow_table(schema.to_frame()).schema, ("did", "table", _LOT)) as writer:
        for dids in did_ranges(sum(map(storage.rows, keys)), _ENTRIES_AT_ONCE):
            [rows] = storage.collect([shared.filter(dids.holds("did"))], keys, engine="streaming")
            numbered = rows.join(numbers, on="did").select(schema.names())
            for group in numbered.sort(_LOT).partition_by(_LOT, maintain_order=True):
                writer.write(arrow_table(group))
    return pl.scan_parquet(path, glob=False, schema=schema)


def _stored(
    study: Study,
    storage: StudyStorage,
    packs: list[tuple[str, str]],
    accounts: pl.DataFrame,
    listed: pl.DataFrame,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return what packs hold of shared records: `uri, cid_now`; rejects as `uri, rejected`; and `uri` of rows."""
    wanted = listed.select(uri="entry")
    now, rejected, rows = [], [], []
    for host, pack in packs:
        own = accounts.filter(pds_host=host, pack=pack).select("did")
        key = f"repos/{partition_folder(host)}/{pack}.parquet"
        [told_of] = storage.collect([storage.scan([key], PACK_SCHEMA).select("blocks_files").head(1)], [key])
        files = told_of["blocks_files"].to_list()[0] or []
        blocks = [f"{key.rpartition('/')[0]}/{file['name']}" for file in files]
        now.append(_in_tree(storage, blocks, own, wanted))
        numbers = range(len(blocks) + 1)
        kinds = {
            kind: [records_key(host, kind, pack, number) for number in numbers]
            for kind in study_tables(study)
        }
        converted = [one for each in kinds.values() for one in each if storage.exists(one)]
        rows.append(_uris(storage, converted, own, wanted))
        left = [
            one
            for one in (records_key(host, "rejects", pack, number) for number in numbers)
            if storage.exists(one)
        ]
        rejected.append(_rejects(storage, left, own, wanted))
    empty = pl.DataFrame(schema={"uri": pl.String(), "cid_now": pl.String(), "rejected": pl.String()})
    return (
        pl.concat([empty.select("uri", "cid_now"), *now]),
        pl.concat([empty.select("uri", "rejected"), *rejected]).unique(
            "uri", keep="first", maintain_order=True
        ),
        pl.concat([empty.select("uri"), *rows]).unique(),
    )


def _in_tree(storage: StudyStorage, keys: list[str], own: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    uri = pl.concat_str(pl.lit("at://"), "did", pl.lit("/"), "collection", pl.lit("/"), "rkey")
    rows = (
        storage.scan(keys, _BLOCKS)
        .join(own.lazy(), on="did", how="semi")
        .select("cid", uri=uri)
        .join(wanted.lazy(), on="uri", how="semi")
    )
    [found] = storage.collect([rows], keys)
    usable = found["cid"].bin.size() == CID_BYTES
    return pl.concat(
        [
            found.filter(usable).select("uri").with_columns(cid_now=cid_texts(found.filter(usable)["cid"])),
            # What is no CID is none that was shared.
            found.filter(~usable).select("uri", cid_now=pl.lit("")),
        ]
    )


def _uris(storage: StudyStorage, keys: list[str], own: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    rows = (
        storage.scan(keys, {"did": pl.String(), "uri": pl.String()})
        .join(own.lazy(), on="did", how="semi")
        .join(wanted.lazy(), on="uri", how="semi")
        .select("uri")
    )
    return storage.collect([rows], keys)[0]


def _rejects(storage: StudyStorage, keys: list[str], own: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    rows = (
        storage.scan(keys, REJECTS_SCHEMA)
        .join(own.lazy(), on="did", how="semi")
        .join(wanted.lazy(), on="uri", how="semi")
        .select("uri", rejected="reason")
    )
    return storage.collect([rows], keys)[0]


def _judged(
    shared: pl.DataFrame, now: pl.DataFrame, rejects: pl.DataFrame, rows: pl.DataFrame
) -> pl.DataFrame:
    """Return what became of shared records, given with their accounts' columns (REHYDRATION_SCHEMA)."""
    told_of = (
        shared.join(now, on="uri", how="left")
        .join(rejects, on="uri", how="left")
        .join(rows.with_columns(is_row=True), on="uri", how="left")
        .with_columns(pl.col("is_row").fill_null(value=False))
    )
    outcome, reason = _of_account()
    state, has_snapshot = pl.col("state"), pl.col("pack").is_not_null()
    here = pl.col("cid_now").is_not_null()
    same = (pl.col("cid_now") == pl.col("cid")).fill_null(value=True)
    was_listed = pl.col("how") == Obtained.LIST_RECORDS.value
    not_there = [reason.value for reason in NOT_THERE]
    said_absent = pl.col("rejected").is_in(not_there).fill_null(value=False)
    proven = pl.when(was_listed).then(pl.lit(LeftOut.NOT_FOUND.value)).otherwise(pl.lit(LeftOut.ABSENT.value))

    def word(outcome: Rehydrated) -> pl.Expr:
        return pl.lit(outcome.value)

    of_record = (
        pl.when(here & ~same)
        .then(word(Rehydrated.EDITED))
        .when(here & pl.col("is_row"))
        .then(word(Rehydrated.FOUND))
        .when(pl.col("rejected").is_not_null() & ~said_absent)
        .then(word(Rehydrated.UNUSABLE))
        .when(here)
        .then(word(Rehydrated.LEFT_OUT))
        # An account that was asked for another list may have what is not stored of it.
        .when((state == PENDING) & ~said_absent)
        .then(word(Rehydrated.NOT_ASKED))
        .otherwise(word(Rehydrated.DELETED))
    )
    why = (
        pl.when(of_record == Rehydrated.UNUSABLE.value)
        .then("rejected")
        .when(of_record == Rehydrated.DELETED.value)
        .then(pl.when(said_absent).then("rejected").otherwise(proven))
        .when(of_record == Rehydrated.NOT_ASKED.value)
        .then("state")
    )
    is_read = has_snapshot & pl.col("shown").fill_null(value=False)
    judged = told_of.with_columns(
        outcome=pl.when(is_read).then(of_record).otherwise(outcome),
        reason=pl.when(is_read).then(why).otherwise(reason),
    )
    is_edited = pl.col("outcome") == Rehydrated.EDITED.value
    return (
        judged.with_columns(
            kept=is_read & pl.col("is_row"),
            cid_now=pl.when(is_edited).then("cid_now"),
            as_of=pl.when(has_snapshot).then("as_of"),
        )
        .select(REHYDRATION_SCHEMA.names())
        .sort("did", "uri")
    )


def _of_account() -> tuple[pl.Expr, pl.Expr]:
    """Return what is said of a record whose account is not read, or hidden: the outcome and the reason."""
    state, reason = pl.col("state"), pl.col("reason")
    unasked = state.is_in([PENDING])
    not_ours = state.is_null() | ~pl.col("in_source")
    not_now = state.is_in([word.value for word in _NOT_NOW]) | (state == UNRESOLVED)
    outcome = (
        pl.when(not_ours | (state == NOTHING_ASKED))
        .then(pl.lit(Rehydrated.LEFT_OUT.value))
        .when(is_gone())
        .then(pl.lit(Rehydrated.ACCOUNT_GONE.value))
        .when(not_now)
        .then(pl.lit(Rehydrated.UNREACHABLE.value))
        .when(unasked)
        .then(pl.lit(Rehydrated.NOT_ASKED.value))
        .otherwise(pl.lit(Rehydrated.UNREACHABLE.value))
    )
    why = (
        pl.when(not_ours)
        .then(pl.lit(EXCLUDED))
        .when((state == UNRESOLVED) | (state == Outcome.FAILED.value))
        .then(reason)
        .otherwise(state)
    )
    return outcome, why
