"""The study's own tables in the place of a metadata store, where there is no disk for a file of SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.metadata_stores.items import RunItem, UserItem
from backfill_dagster.metadata_stores.tables import (
    RUN_METADATA_KEY,
    RUN_SCHEMA,
    USER_METADATA_KEY,
    USER_SCHEMA,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import polars as pl

    from backfill_dagster.storage import StudyStorage

_DIDS_AT_ONCE = 10_000


class OwnTables:
    """What is in the tables is in the store; see `Store`."""

    def __init__(self, storage: StudyStorage) -> None:
        self._storage = storage

    def identity(self) -> str:
        """Name the store."""
        return "tables"

    def put_users(self, users: Iterable[UserItem]) -> None:
        """Leave it to the table, which has them by then."""

    def remove_users(self, dids: Iterable[str]) -> None:
        """Leave it to the table, which is written without them next."""

    def users(self) -> Iterator[UserItem]:
        """Yield all accounts' items, by DID."""
        yield from (UserItem(*row) for row in self._rows(USER_METADATA_KEY, USER_SCHEMA).iter_rows())

    def dids(self) -> Iterator[list[str]]:
        """Yield the DIDs of all accounts, in order, some at a time."""
        dids = self._rows(USER_METADATA_KEY, USER_SCHEMA)["did"]
        for some in dids.to_frame().iter_slices(_DIDS_AT_ONCE):
            yield some["did"].to_list()

    def put_runs(self, runs: Iterable[RunItem]) -> None:
        """Leave it to the table, which has them by then."""

    def runs(self) -> Iterator[RunItem]:
        """Yield all runs' items, by run id."""
        yield from (
            RunItem(*row) for row in self._rows(RUN_METADATA_KEY, RUN_SCHEMA).sort("run_id").iter_rows()
        )

    def has_lost_users(self) -> bool:
        """Tell that nothing is lost: the table is the store."""
        return False

    def has_lost_runs(self) -> bool:
        """Tell the same of runs' items."""
        return False

    def erase(self) -> None:
        """Do nothing: a table that is written again has nothing left of what it was."""

    def _rows(self, key: str, schema: pl.Schema) -> pl.DataFrame:
        if not self._storage.exists(key):
            return schema.to_frame().drop("in_store")
        [rows] = self._storage.collect([self._storage.scan([key], schema)], [key])
        return rows.drop("in_store")
