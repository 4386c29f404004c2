"""The table of accounts as it is stored, read by ranges of DIDs: nobody needs it whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.records.tables import TABLES
from backfill_dagster.repos.ledger_lots import account_ranges
from backfill_dagster.study_files import ACCOUNTS_KEY
from backfill_dagster.tables.account_sums import ACCOUNT_COLUMNS, AccountSums, sum_up
from backfill_dagster.tables.accounts import accounts_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

    from backfill_dagster.dids.did_ranges import DidRange
    from backfill_dagster.storage import StudyStorage


class AccountRows(NamedTuple):
    """Some columns of the accounts of a range of DIDs, in the order in which they are stored: by DID."""

    dids: DidRange
    rows: pl.DataFrame


def stored_accounts(
    storage: StudyStorage, columns: Sequence[str], ranges: Sequence[DidRange] | None = None
) -> Iterator[AccountRows]:
    """Yield these columns of all accounts, by ranges that follow each other; at least one. Raises StorageError.

    They are ranges of a bounded number of accounts, unless others are given.
    """
    for dids in ranges or account_ranges(storage.rows(ACCOUNTS_KEY)):
        # What an older version has written may lack columns, and need not be in order.
        every = storage.scan([ACCOUNTS_KEY], accounts_schema(TABLES))
        rows = every.filter(dids.holds("did")).sort("did").select(columns)
        [found] = storage.collect([rows], [ACCOUNTS_KEY])
        yield AccountRows(dids, found)


def stored_sums(storage: StudyStorage) -> AccountSums:
    """Return what the stored accounts come to. Raises StorageError."""
    tables = [table for table in TABLES if table in storage.schema(ACCOUNTS_KEY)]
    lots = stored_accounts(storage, [*ACCOUNT_COLUMNS, *tables])
    return sum_up(lot.rows for lot in lots)
