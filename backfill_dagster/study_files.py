"""The files of a study that its stages hand on to each other, and what they tell of its accounts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from backfill_dagster import fetch_modes
from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.collect import DIDS_SCHEMA
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.directory.history import dated_answers, with_unasked
from backfill_dagster.records.tables import OTHER_RECORDS, TABLES_OF_COLLECTION
from backfill_dagster.repos.asked import with_asked
from backfill_dagster.repos.ledger_lots import account_ranges, ledger_by_range
from backfill_dagster.repos.snapshots import snapshots
from backfill_dagster.storage import StudyStorage, without_source
from backfill_dagster.tables.accounts import rows_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.did_ranges import DidRange

SOURCE_KEY = "source_dids.parquet"
SOURCE_REJECTS_KEY = "source_rejects.parquet"
DIRECTORY_KEY = "directory.parquet"
# What an interrupted lookup has come to, in parts: one file would be written again with each of them.
UNFINISHED_DIRECTORY_FOLDER = "directory_unfinished"
DIRECTORY_HISTORY_KEY = "directory_history.parquet"
ACCOUNTS_KEY = "accounts.parquet"
_SNAPSHOT_PLACE = ("did", "pds_host", "pack")
# Accounts of the source that are dealt out at once.
_DEALT_AT_ONCE = 100_000
# Of the directory's many columns, those that an answer is made of.
_LATEST_ANSWER = ("did", "state", "handle", "pds_host", "resolved_at")


def study_tables(study: Study) -> list[str]:
    """Return the names of the tables that the study's record types fill."""
    own = [table for kind in study.record_types for table in TABLES_OF_COLLECTION[kind]]
    return [*own, OTHER_RECORDS] if study.other_record_types else own


def source_dids(study: Study) -> pl.Series:
    """Return the DIDs of the study's accounts, as its source was last read."""
    return StudyStorage(study.location).read(SOURCE_KEY)["did"]


def directory_answers(storage: StudyStorage, dids: DidRange) -> pl.DataFrame:
    """Return all that the directory has said of the accounts of a range, and when (`history.ANSWERS_SCHEMA`)."""
    is_kept = storage.exists(DIRECTORY_HISTORY_KEY)
    answers = rows_in(storage, DIRECTORY_HISTORY_KEY, dids) if is_kept else None
    latest = storage.scan_as_it_is(DIRECTORY_KEY).filter(dids.holds("did")).select(_LATEST_ANSWER)
    return dated_answers(answers, *storage.collect([latest], [DIRECTORY_KEY]))


class AccountLot(NamedTuple):
    """What is known of the accounts of a range of DIDs.

    The directory's rows of them, with what is asked of each as `asked`; the ledger's, as of `read_ledger`; and `did` of
    those that the source lists.
    """

    dids: DidRange
    directory: pl.DataFrame
    ledger: pl.DataFrame
    source: pl.DataFrame


def account_lots(
    study: Study, *, with_unknown: bool = False, ranges: Sequence[DidRange] | None = None
) -> Iterator[AccountLot]:
    """Yield all accounts of the directory, and those attempted, in ranges of their DIDs that follow each other.

    There is at least one. With those that the source lists and the directory has no row of, if they are wanted: they
    are `not_asked`. A range has a bounded number of accounts, and nothing else of the others is held. They are those of
    `lot_ranges` as of now, unless others are given: another run may have replaced the directory since they were asked
    for. Raises StorageError.
    """
    storage, asks = StudyStorage(study.location), fetch_modes.stored_asks(study)
    ranges = ranges or lot_ranges(storage)
    with ledger_by_range(storage, ranges) as ledger, _source_by_range(storage, ranges) as listed:
        for dids in ranges:
            directory, source = rows_in(storage, DIRECTORY_KEY, dids), listed(dids)
            if with_unknown:
                directory = with_unasked(directory, source["did"])
            yield AccountLot(dids, with_asked(directory, asks), ledger(dids), source)


@contextmanager
def _source_by_range(
    storage: StudyStorage, ranges: Sequence[DidRange]
) -> Iterator[Callable[[DidRange], pl.DataFrame]]:
    """Lend the source by ranges: it is in its list's order, so that each range would have it read whole."""
    if len(ranges) == 1 or not storage.exists(SOURCE_KEY):
        source = storage.read(SOURCE_KEY) if storage.exists(SOURCE_KEY) else DIDS_SCHEMA.to_frame()
        yield lambda _: source
        return
    schema = storage.schema(SOURCE_KEY)
    with storage.scratch() as scratch, DealtRows(scratch / "source.arrow", schema) as dealt:
        for some in storage.read(SOURCE_KEY).iter_slices(_DEALT_AT_ONCE):
            for dids, its_rows in dealt_by_range(some, ranges):
                dealt.add(dids, its_rows)
        yield dealt.of


def lot_ranges(storage: StudyStorage) -> Sequence[DidRange]:
    """Return the ranges of DIDs of `account_lots`. Raises StorageError."""
    return account_ranges(storage.rows(DIRECTORY_KEY))


def rows_in(storage: StudyStorage, key: str, dids: DidRange) -> pl.DataFrame:
    """Return the rows of a stored table whose `did` is in a range. Raises StorageError."""
    [rows] = storage.collect([storage.scan_as_it_is(key).filter(dids.holds("did"))], [key])
    return rows


def current_snapshots(study: Study) -> pl.DataFrame:
    """Return `did, pds_host, pack` of each account that has a snapshot, sorted by DID, also of those not shown."""
    lots = (snapshots(lot.directory, lot.ledger) for lot in account_lots(study))
    return pl.concat(without_source(some.select(_SNAPSHOT_PLACE)) for some in lots)


def shown_snapshots(study: Study) -> pl.DataFrame:
    """Return `did, pds_host, pack` of the snapshots whose records belong in the tables now, sorted by DID."""
    hide_inactive = study.inactive_accounts != "keep"
    return pl.concat(
        without_source(rows_from(lot.source, lot.directory, lot.ledger, hide_inactive=hide_inactive))
        for lot in account_lots(study)
    )
