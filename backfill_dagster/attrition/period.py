"""How fast what was collected goes, and how much of the study's period had gone before it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.records.tables import OTHER_RECORDS, TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import study_tables
from backfill_dagster.survivorship.rates import ALL_AGES, RATES_SCHEMA, Lost, Watching, lost_before
from backfill_dagster.survivorship.stored import DELETION_RATES_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backfill_dagster.config.study import Study
    from backfill_dagster.tables.account_sums import AccountSums

_BY_DAY_SCHEMA = pl.Schema({"table": pl.String(), "day": pl.Date(), "records": pl.Int64()})


@dataclass(frozen=True, slots=True)
class Decay:
    """The rates of deletion that were observed (RATES_SCHEMA), none after a single collection.

    `lost` says, by collection, what share of the records of the study's period had gone before they were collected;
    `seen_at` is when that was, on average over the records.
    """

    rates: pl.DataFrame
    lost: tuple[Lost, ...]
    seen_at: datetime | None

    @property
    def records(self) -> pl.DataFrame:
        """The rates of records over all ages."""
        return self.rates.filter(watched=Watching.RECORDS.value, age=ALL_AGES)

    @property
    def accounts(self) -> pl.DataFrame:
        """The rate of accounts, if there is one."""
        return self.rates.filter(watched=Watching.ACCOUNTS.value)


def read_decay(study: Study, accounts: AccountSums, by_day: pl.DataFrame | None = None) -> Decay:
    """Read the rates of the study's own types, and estimate what had gone; raises StorageError.

    `accounts` are those of the source. `by_day` (`table, day, records`) counts the records of the period in the tables;
    if it is not given, they are counted.
    """
    storage = StudyStorage(study.location)
    collections = table_collections(study)
    seen_at = accounts.mean_fetch
    if not storage.exists(DELETION_RATES_KEY):
        return Decay(RATES_SCHEMA.to_frame(), (), seen_at)
    own = [*collections.values(), *study.other_record_types]
    is_own = pl.col("collection").is_null() | pl.col("collection").is_in(own)
    rates = storage.read(DELETION_RATES_KEY).filter(is_own)
    of_records = rates.filter(watched=Watching.RECORDS.value)
    if of_records.is_empty() or seen_at is None:
        return Decay(rates, (), seen_at)
    counted = _by_day(storage, list(collections)) if by_day is None else by_day
    return Decay(rates, tuple(lost_before(of_records, counted, seen_at, collections)), seen_at)


def table_collections(study: Study) -> Mapping[str, str]:
    """Return the collection of each of the study's tables that has a single one."""
    return {
        table: collection
        for table in study_tables(study)
        if table != OTHER_RECORDS and (collection := TABLE_BY_NAME[table].collection) is not None
    }


def _by_day(storage: StudyStorage, tables: list[str]) -> pl.DataFrame:
    """Count the records of the study's period in the tables by day."""
    counted = [_BY_DAY_SCHEMA.to_frame()]
    day = pl.col("created_at").dt.date().alias("day")
    for table in tables:
        for key in storage.keys(f"tables/{table}"):
            rows = storage.scan([key], TABLE_BY_NAME[table].schema).filter("in_range").group_by(day)
            [found] = storage.collect([rows.agg(records=pl.len())], [key], engine="streaming")
            counted.append(
                found.with_columns(table=pl.lit(table)).select(_BY_DAY_SCHEMA.names()).cast(_BY_DAY_SCHEMA)
            )
    total = pl.concat(counted).group_by("table", "day").agg(pl.col("records").sum())
    return total.sort("table", "day")
