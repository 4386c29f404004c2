"""A study's metadata, kept up to date in its tables and in its store.

A row is in the store as it is in the table if it says so. First the table is written, with what is new as not in the
store; then the store; then the table again. Whatever ends this, the next time does what is left.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import DidRange
from backfill_dagster.metadata_stores.items import RunItem, UserItem
from backfill_dagster.metadata_stores.opening import open_store
from backfill_dagster.metadata_stores.store import StoreError
from backfill_dagster.metadata_stores.tables import (
    RUN_METADATA_KEY,
    RUN_SCHEMA,
    USER_METADATA_KEY,
    USER_ROW_COLUMNS,
    USER_SCHEMA,
    run_rows,
    user_rows,
)
from backfill_dagster.monitoring.audit_log import AuditLog
from backfill_dagster.purge.rewrite import purge_rows
from backfill_dagster.records.tables import TABLES
from backfill_dagster.repos.ledger_lots import account_ranges
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stored_accounts import stored_accounts
from backfill_dagster.study_files import ACCOUNTS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from backfill_dagster.config.study import Study
    from backfill_dagster.metadata_stores.store import Store
    from backfill_dagster.purge.tombstones import Tombstones

logger = logging.getLogger(__name__)
_STORE = "store"


@dataclass(frozen=True, slots=True)
class Written:
    """How many rows a table of metadata has, and how many items were written to the store and deleted there.

    `failure` says why the store, if it is elsewhere, has not taken them; the next time tries again.
    """

    rows: int
    put: int = 0
    removed: int = 0
    failure: str | None = None


def store_of(study: Study) -> Store:
    """Return the study's metadata store; opens nothing yet."""
    return open_store(study.metadata_store, study=study.name, storage=study.storage.location)


def write_user_metadata(study: Study) -> Written:
    """Bring the table of collected accounts, and the store's items of them, up to date with `accounts`."""
    storage, store = StudyStorage(study.location), store_of(study)
    with _scratch_rows(storage, store, USER_METADATA_KEY, USER_SCHEMA) as users:
        users.add_all(_user_lots(storage, users.known(store.has_lost_users)))
        try:
            # Before the table forgets them.
            if users.gone:
                store.remove_users(row[0] for row in users.gone_rows())
        except StoreError as error:
            _warn(error)
            users.keep_gone()
            return Written(users.told + users.gone, failure=str(error))
        written = users.bring(lambda new: store.put_users(UserItem(*row) for row in new))
        return replace(written, removed=users.gone)


def write_run_metadata(study: Study) -> Written:
    """Bring the table of runs, and the store's items of them, up to date with the audit log."""
    storage, store = StudyStorage(study.location), store_of(study)
    rows = run_rows(study.name, AuditLog(storage).read())
    with _scratch_rows(storage, store, RUN_METADATA_KEY, RUN_SCHEMA) as runs:
        [known] = storage.collect([runs.known(store.has_lost_runs)], [RUN_METADATA_KEY])
        runs.add_all([_Lot(DidRange(), rows, known)])
        return runs.bring(lambda new: store.put_runs(RunItem(*row) for row in new))


def purge(study: Study, tombstones: Tombstones) -> int:
    """Take purged accounts out of the table and the store; return how many items that were. Raises StorageError."""
    storage, store = StudyStorage(study.location), store_of(study)
    held = [did for some in store.dids() for did in some if tombstones.holds_did(did)]
    if held:
        store.remove_users(held)
    store.erase()
    return len(held) + purge_rows(storage, USER_METADATA_KEY, tombstones)


class _Lot(NamedTuple):
    """Rows of a range, in their order: what is to be in the table, and what was there."""

    dids: DidRange
    rows: pl.DataFrame
    known: pl.DataFrame


def _user_lots(storage: StudyStorage, known: pl.LazyFrame) -> Iterator[_Lot]:
    """Yield the rows of collected accounts by ranges of their DIDs; `known` is what the table has."""
    [number] = storage.collect([known.select(pl.len())], [USER_METADATA_KEY])
    tables = [table for table in TABLES if table in storage.schema(ACCOUNTS_KEY)]
    ranges = account_ranges(max(storage.rows(ACCOUNTS_KEY), number.item()))
    for dids, accounts in stored_accounts(storage, [*USER_ROW_COLUMNS, *tables], ranges):
        [before] = storage.collect([known.filter(dids.holds("did"))], [USER_METADATA_KEY])
        yield _Lot(dids, user_rows(accounts), before)


@contextmanager
def _scratch_rows(storage: StudyStorage, store: Store, key: str, schema: pl.Schema) -> Iterator[_Rows]:
    with storage.scratch() as scratch, DealtRows(scratch / "rows.arrow", schema) as dealt:
        yield _Rows(storage, store, key, schema, dealt)


class _Rows:
    """Rows that are to be in a table and in a store, in a scratch file, so that those of a range alone are held.

    `told` counts them, `new` those of them that are not in the store, and `gone` those that were in the table besides.
    """

    def __init__(
        self, storage: StudyStorage, store: Store, key: str, schema: pl.Schema, dealt: DealtRows
    ) -> None:
        self.told = self.new = self.gone = 0
        self._storage, self._store, self._table, self._schema = storage, store, key, schema
        self._dealt = dealt
        self._by = schema.names()[0]
        self._ranges: list[DidRange] = []
        self._is_there = storage.exists(key)
        self._is_same_store = not self._is_there or storage.metadata(key).get(_STORE) == store.identity()
        # Whether the table says just what is to be in it; and with what is gone.
        self._is_known = self._is_known_with_gone = self._is_same_store

    def known(self, is_lost: Callable[[], bool]) -> pl.LazyFrame:
        """Return the rows of the table; if the store has lost their items, none as in it."""
        rows = self._storage.scan([self._table] if self._is_there else [], self._schema)
        [in_store] = self._storage.collect([rows.select(pl.col("in_store").any())], [self._table])
        return rows.with_columns(in_store=pl.lit(value=False)) if in_store.item() and is_lost() else rows

    def add_all(self, lots: Iterable[_Lot]) -> None:
        """Take what is to be in the table, range by range."""
        # What the table says is of another store, if the study had one before.
        in_store = pl.col("in_store") & self._is_same_store
        for dids, rows, known in lots:
            told = _with_in_store(rows, known.filter(in_store))
            gone = known.join(rows, on=self._by, how="anti").with_columns(in_store)
            self._ranges.append(dids)
            self._dealt.add((dids, "told"), told)
            self._dealt.add((dids, "gone"), gone)
            self.told += told.height
            self.new += told.filter(~pl.col("in_store")).height
            self.gone += gone.height
            self._is_known &= told.equals(known)
            self._is_known_with_gone &= pl.concat([told, gone]).sort(self._by).equals(known)

    def gone_rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield what is gone."""
        for dids in self._ranges:
            yield from self._dealt.of((dids, "gone")).iter_rows()

    def keep_gone(self) -> None:
        """Write the table with what is gone, which the store still has."""
        lots = ([self._told_of(dids), self._dealt.of((dids, "gone"))] for dids in self._ranges)
        if not self._is_known_with_gone:
            self._write(pl.concat(lot).sort(self._by) for lot in lots)

    def bring(self, put: Callable[[Iterator[tuple[Any, ...]]], None]) -> Written:
        """Write the rows to the table; and `put` those that are not in the store there."""
        if not self._is_known:
            self._write(map(self._told_of, self._ranges))
        if not self.new:
            return Written(self.told)
        try:
            put(self._new_rows())
        except StoreError as error:
            _warn(error)
            return Written(self.told, failure=str(error))
        in_store = pl.lit(value=True).alias("in_store")
        self._write(self._told_of(dids).with_columns(in_store) for dids in self._ranges)
        return Written(self.told, self.new)

    def _new_rows(self) -> Iterator[tuple[Any, ...]]:
        for dids in self._ranges:
            yield from self._told_of(dids).filter(~pl.col("in_store")).drop("in_store").iter_rows()

    def _told_of(self, dids: DidRange) -> pl.DataFrame:
        return self._dealt.of((dids, "told"))

    def _write(self, parts: Iterable[pl.DataFrame]) -> None:
        made_with = {_STORE: self._store.identity()}
        self._storage.write_parts(self._table, parts, self._schema, made_with)


def _with_in_store(rows: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    """Say of each row whether the store has it, as it is."""
    columns = [name for name in rows.columns if name != "in_store"]
    return (
        rows.join(stored.select(*columns, stored=True), on=columns, how="left", maintain_order="left")
        .with_columns(in_store=pl.col("stored").fill_null(value=False))
        .drop("stored")
    )


def _warn(error: StoreError) -> None:
    logger.warning("the metadata store lacks what is new, until the next run: %s", error)
