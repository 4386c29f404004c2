"""A study's metadata, kept up to date in its tables and in its store.

A row is in the store as it is in the table if it says so. First the table is written, with what is new as not in the
store; then the store; then the table again. Whatever ends this, the next time does what is left.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.metadata_stores.items import RunItem, UserItem
from backfill_dagster.metadata_stores.opening import open_store
from backfill_dagster.metadata_stores.store import StoreError
from backfill_dagster.metadata_stores.tables import (
    RUN_METADATA_KEY,
    RUN_SCHEMA,
    USER_METADATA_KEY,
    USER_SCHEMA,
    run_rows,
    user_rows,
)
from backfill_dagster.monitoring.audit_log import AuditLog
from backfill_dagster.purge.rewrite import purge_rows
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import ACCOUNTS_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

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
    rows = user_rows(storage.read(ACCOUNTS_KEY))
    known = _known(storage, USER_METADATA_KEY, USER_SCHEMA, store.has_lost_users)
    gone = known.join(rows, on="did", how="anti")
    try:
        # Before the table forgets them.
        if gone.height:
            store.remove_users(gone["did"])
    except StoreError as error:
        _warn(error)
        rows = pl.concat([rows, gone.with_columns(in_store=pl.lit(value=False))]).sort("did")
        _write(storage, store, USER_METADATA_KEY, rows, known)
        return Written(rows.height, failure=str(error))
    written = _write(
        storage,
        store,
        USER_METADATA_KEY,
        rows,
        known,
        lambda new: store.put_users(UserItem(*row) for row in new.drop("in_store").iter_rows()),
    )
    return replace(written, removed=gone.height)


def write_run_metadata(study: Study) -> Written:
    """Bring the table of runs, and the store's items of them, up to date with the audit log."""
    storage, store = StudyStorage(study.location), store_of(study)
    rows = run_rows(study.name, AuditLog(storage).read())
    return _write(
        storage,
        store,
        RUN_METADATA_KEY,
        rows,
        _known(storage, RUN_METADATA_KEY, RUN_SCHEMA, store.has_lost_runs),
        lambda new: store.put_runs(RunItem(*row) for row in new.drop("in_store").iter_rows()),
    )


def purge(study: Study, tombstones: Tombstones) -> int:
    """Take purged accounts out of the table and the store; return how many items that were. Raises StorageError."""
    storage, store = StudyStorage(study.location), store_of(study)
    held = [did for some in store.dids() for did in some if tombstones.holds_did(did)]
    if held:
        store.remove_users(held)
    store.erase()
    return len(held) + purge_rows(storage, USER_METADATA_KEY, tombstones)


def _known(storage: StudyStorage, key: str, schema: pl.Schema, is_lost: Callable[[], bool]) -> pl.DataFrame:
    """Return the rows of a table; if the store has lost their items, none as in it."""
    if not storage.exists(key):
        return schema.to_frame()
    [known] = storage.collect([storage.scan([key], schema)], [key])
    return (
        known.with_columns(in_store=pl.lit(value=False)) if known["in_store"].any() and is_lost() else known
    )


def _write(
    storage: StudyStorage,
    store: Store,
    key: str,
    rows: pl.DataFrame,
    known: pl.DataFrame,
    put: Callable[[pl.DataFrame], None] | None = None,
) -> Written:
    """Write the rows to the table, and those that are not in the store to the store, if that is to be tried."""
    made_with = {_STORE: store.identity()}
    if storage.exists(key) and storage.metadata(key).get(_STORE) != made_with[_STORE]:
        # The study has another store than before.
        known = known.clear()
    columns = [name for name in rows.columns if name != "in_store"]
    stored = known.filter("in_store").select(*columns, stored=True)
    told = (
        rows.join(stored, on=columns, how="left", maintain_order="left")
        .with_columns(in_store=pl.col("stored").fill_null(value=False))
        .drop("stored")
    )
    new = told.filter(~pl.col("in_store"))
    if not told.equals(known):
        storage.write(key, told, made_with)
    if put is None or new.is_empty():
        return Written(rows.height)
    try:
        put(new)
    except StoreError as error:
        _warn(error)
        return Written(rows.height, failure=str(error))
    storage.write(key, told.with_columns(in_store=True), made_with)
    return Written(rows.height, new.height)


def _warn(error: StoreError) -> None:
    logger.warning("the metadata store lacks what is new, until the next run: %s", error)
