"""Writes what a study shares: ids, or tables under pseudonyms, with a manifest that is published last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster import pending, pipeline
from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.derived.stored_tables import StoredTables
from backfill_dagster.errors import ConfigError, StorageError
from backfill_dagster.manifest.accounts import list_snapshots
from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.manifest.told_config import told_config
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.tables import TABLES
from backfill_dagster.records.windows import granularity_of
from backfill_dagster.repos.ledger_lots import account_ranges
from backfill_dagster.repos.snapshots import snapshots
from backfill_dagster.sharing.pseudonyms import Pseudonyms, read_salt
from backfill_dagster.sharing.rebuilt_yaml import rebuilt_yaml, told_rules
from backfill_dagster.sharing.sample import accounts_to_share
from backfill_dagster.sharing.shared_folder import (
    ACCOUNTS,
    FORMAT,
    IDS,
    REBUILT_YAML,
    SHARED_ACCOUNTS_SCHEMA,
    SHARED_FOLDER,
    SHARED_MANIFEST,
    SHARED_RECORDS_SCHEMA,
    table_file,
)
from backfill_dagster.sharing.treatments import Treatment, columns_of, treated, treatments_of
from backfill_dagster.storage import (
    RowGroupWriter,
    StoredFile,
    StudyStorage,
    arrow_table,
    without_source,
)
from backfill_dagster.study_files import ACCOUNTS_KEY, account_lots, rows_in, study_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.did_ranges import DidRange

# Rows of a table that are held at once, but for those of one account.
_AT_ONCE = 500_000
_ORDER = "_order"
_FETCHED_AT = "snapshot_fetched_at"
# Of a pseudonym, by which those of all accounts are dealt out to lots.
_PLACE_DIGITS = 4
_PSEUDONYMS_AT_ONCE = 20_000
# What the table of accounts says over all of the study's tables.
_OVER_ALL_TABLES = {"undated", "first_created_at", "last_created_at"}


@dataclass(frozen=True, slots=True)
class Shared:
    """What was written: where, of what kind, how many accounts, the rows of each table, and the manifest's digest."""

    folder: str
    what: str
    accounts: int
    rows: dict[str, int]
    digest: str


def share(study: Study) -> Shared:
    """Write what the study's `sharing` says into `shared/<label>/`; the same study gives the same content.

    Only while nothing else works on the study. Raises ConfigError for pseudonyms without a secret to make them with, or
    if nobody is left to share; and StorageError if the tables are not those of what is stored. Then nothing is written.
    """
    sharing = study.sharing
    pseudonyms = None if sharing.what == IDS else Pseudonyms(read_salt(sharing))
    storage = StudyStorage(study.location)
    _must_be_built(study, storage)
    tables = [table for table in study_tables(study) if sharing.tables is None or table in sharing.tables]
    lots = (accounts_to_share(lot, sharing, pseudonyms) for _, lot in _accounts(storage))
    # Of all of them this is held.
    chosen = pl.concat(without_source(lot.select("did", _FETCHED_AT, *tables)) for lot in lots)
    if chosen.is_empty():
        raise ConfigError(
            "sharing: no account is left to share: none has rows in the tables"
            + (" and is in the sample; raise sharing.sample" if sharing.sample is not None else "")
        )
    made = _Made(study, storage, chosen, tables, pseudonyms)
    with storage.scratch() as scratch:
        files = made.files(scratch)
        return made.put_in_place(files)


def _accounts(storage: StudyStorage) -> Iterator[tuple[DidRange, pl.DataFrame]]:
    """Yield the rows of the table of accounts, by ranges of their DIDs, in their order."""
    for dids in account_ranges(storage.rows(ACCOUNTS_KEY)):
        yield dids, rows_in(storage, ACCOUNTS_KEY, dids)


def _must_be_built(study: Study, storage: StudyStorage) -> None:
    if Tombstones.load(storage).unfinished:
        raise StorageError(
            f"a purge of {study.name} was interrupted, and whom it is about must not be shared: run {study.name}_purge "
            "first; nothing was written"
        )
    if (
        not storage.exists(ACCOUNTS_KEY)
        or pipeline.packs_to_convert(study)
        or pending.stale_windows(study)
        or pending.accounts_are_stale(study)
    ):
        raise StorageError(
            f"the tables of {study.name} are not those of what is stored: run {study.name}_rebuild first; nothing was "
            "written"
        )


class _Made:
    """The making of one shared folder."""

    def __init__(
        self,
        study: Study,
        storage: StudyStorage,
        chosen: pl.DataFrame,
        tables: Sequence[str],
        pseudonyms: Pseudonyms | None,
    ) -> None:
        self._study = study
        self._storage = storage
        self._chosen = chosen
        self._tables = tables
        self._pseudonyms = pseudonyms
        self._stored = StoredTables(storage, granularity_of(study.time_range), tables)

    def files(self, scratch: Path) -> dict[str, tuple[Path, int]]:
        """Make all files in scratch; returns where each lies by its name, with its rows."""
        files = {}
        for table, frames in self._frames(scratch):
            path, rows = scratch / table_file(table), 0
            with RowGroupWriter(path, self._arrow_schema(table), ()) as writer:
                for frame in frames:
                    if frame.height:
                        writer.write(arrow_table(frame))
                        rows += frame.height
            files[path.name] = path, rows
        if self._pseudonyms is None:
            records = sum(rows for name, (_, rows) in files.items() if name != table_file(ACCOUNTS))
            path = scratch / REBUILT_YAML
            path.write_text(rebuilt_yaml(self._study, records / self._chosen.height))
            files[path.name] = path, 0
        return files

    def put_in_place(self, files: dict[str, tuple[Path, int]]) -> Shared:
        """Put the files into the shared folder, whatever was there before, and their manifest last."""
        storage, folder = self._storage, f"{SHARED_FOLDER}/{self._study.sharing.folder}"
        storage.remove(f"{folder}/{SHARED_MANIFEST}")
        stored = {
            name: storage.publish(path, f"{folder}/{name}", rows=rows) for name, (path, rows) in files.items()
        }
        for key in storage.keys(folder, "*"):
            if key.rpartition("/")[2] not in stored:
                storage.remove(key)
        told = Told(self._said(stored), {})
        write_told(storage, f"{folder}/{SHARED_MANIFEST}", told)
        rows = {table: stored[table_file(table)].rows for table in self._tables}
        return Shared(folder, self._study.sharing.what, self._chosen.height, rows, told.digest)

    def _frames(self, scratch: Path) -> Iterator[tuple[str, Iterator[pl.DataFrame]]]:
        if self._pseudonyms is None:
            yield ACCOUNTS, self._account_ids()
            yield from ((table, self._ids(table)) for table in self._tables)
        else:
            yield ACCOUNTS, self._accounts_under_pseudonyms(scratch)
            yield from ((table, self._under_pseudonyms(table)) for table in self._tables)

    def _account_ids(self) -> Iterator[pl.DataFrame]:
        lots = (
            snapshots(lot.directory, lot.ledger).join(self._chosen_of(lot.dids), on="did", how="semi")
            for lot in account_lots(self._study)
        )
        for rows in list_snapshots(self._storage, lots):
            yield rows.select(SHARED_ACCOUNTS_SCHEMA.names()).sort("did")

    def _accounts_under_pseudonyms(self, scratch: Path) -> Iterator[pl.DataFrame]:
        """Yield what is told of the accounts, in the order of their pseudonyms, some of them at a time."""
        schema = self._treated(ACCOUNTS, self._told_accounts(self._no_accounts())).schema
        with DealtRows(scratch / "accounts.arrow", schema) as dealt:
            lots = len(account_ranges(self._chosen.height))
            for dids, rows in _accounts(self._storage):
                own = rows.join(self._chosen_of(dids), on="did", how="semi", maintain_order="left")
                # They are hashes, and so spread evenly.
                first = pl.col("did").str.slice(0, _PLACE_DIGITS).str.to_integer(base=16)
                told = self._treated(ACCOUNTS, self._told_accounts(own)).with_columns(
                    (first * lots // 16**_PLACE_DIGITS).alias(_ORDER)
                )
                for (lot,), some in told.partition_by(_ORDER, as_dict=True, include_key=False).items():
                    dealt.add(lot, some)
            for number in range(lots):
                yield dealt.of(number).sort("did")

    def _chosen_of(self, dids: DidRange) -> pl.DataFrame:
        return self._chosen.select("did").filter(dids.holds("did"))

    def _no_accounts(self) -> pl.DataFrame:
        return self._storage.schema(ACCOUNTS_KEY).to_frame()

    def _ids(self, table: str) -> Iterator[pl.DataFrame]:
        for rows in self._lots(table, self._chosen["did"], ["did", "uri", "cid"]):
            yield rows.sort("did", "uri").drop("did")

    def _under_pseudonyms(self, table: str) -> Iterator[pl.DataFrame]:
        """Yield a table's rows in an order that tells nothing of the one of the DIDs."""
        assert self._pseudonyms is not None  # noqa: S101  whoever shares under pseudonyms has them
        wanted = _shared_columns(table)
        # Some at a time: as long as they are Python's they take far more memory than as a column.
        order = pl.concat(map(self._pseudonyms.of_column, _slices(self._chosen["did"])))
        for rows in self._lots(table, order, wanted):
            yield self._treated(table, rows).sort("did", "uri")

    def _treated(self, table: str, rows: pl.DataFrame) -> pl.DataFrame:
        assert self._pseudonyms is not None  # noqa: S101  as above
        return treated(table, rows, self._pseudonyms, self._study.sharing.created_at)

    def _told_accounts(self, accounts: pl.DataFrame) -> pl.DataFrame:
        """Return what is told of accounts."""
        # A column that is not classified is an error here too, if it comes from an older file.
        treatments_of(ACCOUNTS, accounts.columns)
        told = self._treatments(ACCOUNTS)
        wanted = [name for name, treatment in told.items() if treatment is not Treatment.DROPPED]
        return accounts.select(name for name in wanted if name in accounts.columns)

    def _treatments(self, table: str) -> dict[str, Treatment]:
        """Return what becomes of a table's columns here.

        Of record tables that are not shared, not even their accounts' number of rows or time of the last one is told.
        """
        treatments = treatments_of(table, [column.name for column in columns_of(table)])
        if table != ACCOUNTS:
            return treatments
        unshared = set(TABLES) - set(self._tables)
        if unshared & set(study_tables(self._study)):
            unshared |= _OVER_ALL_TABLES
        return {
            name: Treatment.DROPPED if name in unshared else treatment
            for name, treatment in treatments.items()
        }

    def _lots(self, table: str, order: pl.Series, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield the rows of the chosen accounts, in this order of the accounts, some of them at a time."""
        lot = (pl.col(table).cum_sum() - pl.col(table)) // _AT_ONCE
        ordered = (
            self._chosen.select("did", table)
            .with_columns(order.alias(_ORDER))
            .filter(pl.col(table) > 0)
            .sort(_ORDER)
            .with_columns(lot.alias(_ORDER))
        )
        keys = self._stored.keys(table)
        for some in ordered.partition_by(_ORDER, maintain_order=True):
            dids = some["did"]
            inside = pl.col("did").is_between(pl.lit(dids.min()), pl.lit(dids.max()))
            rows = self._stored.scan(table, keys, columns).filter(
                inside & pl.col("did").is_in(dids.implode())
            )
            yield self._storage.collect([rows], keys, engine="streaming")[0]

    def _arrow_schema(self, table: str) -> pa.Schema:
        if self._pseudonyms is None:
            schema = SHARED_ACCOUNTS_SCHEMA if table == ACCOUNTS else SHARED_RECORDS_SCHEMA
            return arrow_table(schema.to_frame()).schema
        if table == ACCOUNTS:
            return arrow_table(self._treated(table, self._told_accounts(self._no_accounts()))).schema
        schema = pl.Schema({column.name: column.dtype for column in columns_of(table)})
        return arrow_table(self._treated(table, schema.to_frame().select(_shared_columns(table)))).schema

    def _said(self, stored: dict[str, StoredFile]) -> dict[str, Any]:
        study, sharing = self._study, self._study.sharing
        config = told_config(study)
        days = self._chosen[_FETCHED_AT].dt.strftime("%Y-%m-%d")
        said: dict[str, Any] = {
            "format": FORMAT,
            "what": sharing.what,
            "study": study.name,
            "version": config["version"],
            "code": code_version(),
            "collected": {"first": days.min(), "last": days.max()},
            "sample": config["sharing"]["sample"],
            "sample_seed": config["sharing"]["sample_seed"],
            "accounts": self._chosen.height,
            **told_rules(study),
            "files": {
                name: {"rows": file.rows, "bytes": file.bytes, "sha256": file.sha256}
                for name, file in sorted(stored.items())
            },
        }
        if self._pseudonyms is not None:
            said["created_at"] = sharing.created_at
            said["columns"] = {table: self._treatments(table) for table in (ACCOUNTS, *self._tables)}
        return said


def _shared_columns(table: str) -> list[str]:
    """Return the columns of a table of which anything is shared under pseudonyms."""
    treatments = treatments_of(table, [column.name for column in columns_of(table)])
    return [name for name, treatment in treatments.items() if treatment is not Treatment.DROPPED]


def _slices(values: pl.Series) -> Iterator[pl.Series]:
    """Yield a column in pieces, of which there is at least one."""
    for first in range(0, max(1, len(values)), _PSEUDONYMS_AT_ONCE):
        yield values.slice(first, _PSEUDONYMS_AT_ONCE)
