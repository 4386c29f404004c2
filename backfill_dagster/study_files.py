"""The files of a study that its stages hand on to each other, and what they tell of its accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster import fetch_modes
from backfill_dagster.directory.history import dated_answers, with_unasked
from backfill_dagster.records.tables import OTHER_RECORDS, TABLES_OF_COLLECTION
from backfill_dagster.repos.asked import with_asked
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.storage import StudyStorage
from backfill_dagster.tables.accounts import rows_from

if TYPE_CHECKING:
    import polars as pl

    from backfill_dagster.config.study import Study

SOURCE_KEY = "source_dids.parquet"
SOURCE_REJECTS_KEY = "source_rejects.parquet"
DIRECTORY_KEY = "directory.parquet"
# What an interrupted lookup has come to, in parts: one file would be written again with each of them.
UNFINISHED_DIRECTORY_FOLDER = "directory_unfinished"
DIRECTORY_HISTORY_KEY = "directory_history.parquet"
ACCOUNTS_KEY = "accounts.parquet"


def study_tables(study: Study) -> list[str]:
    """Return the names of the tables that the study's record types fill."""
    own = [table for kind in study.record_types for table in TABLES_OF_COLLECTION[kind]]
    return [*own, OTHER_RECORDS] if study.other_record_types else own


def source_dids(study: Study) -> pl.Series:
    """Return the DIDs of the study's accounts, as its source was last read."""
    return StudyStorage(study.location).read(SOURCE_KEY)["did"]


def asked_directory(study: Study, dids: pl.Series | None = None) -> pl.DataFrame:
    """Return the directory with what the study asks of each account, as `asked`.

    If some accounts are given, with a row for each of them: those that it has none of are `not_asked`.
    """
    directory = StudyStorage(study.location).read(DIRECTORY_KEY)
    told = directory if dids is None else with_unasked(directory, dids)
    return with_asked(told, fetch_modes.stored_asks(study))


def directory_answers(storage: StudyStorage) -> pl.DataFrame:
    """Return all that the directory has said of the accounts (`directory.history.ANSWERS_SCHEMA`), and when."""
    answers = storage.read(DIRECTORY_HISTORY_KEY) if storage.exists(DIRECTORY_HISTORY_KEY) else None
    return dated_answers(answers, storage.read(DIRECTORY_KEY))


def shown_snapshots(study: Study) -> pl.DataFrame:
    """Return `did, pds_host, pack` of the snapshots whose records belong in the tables now."""
    storage = StudyStorage(study.location)
    return rows_from(
        storage.read(SOURCE_KEY),
        asked_directory(study),
        read_ledger(storage),
        hide_inactive=study.inactive_accounts != "keep",
    )
