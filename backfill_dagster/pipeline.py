"""The stages of a backfill, each a function that reads and writes the study's storage; no Dagster is needed.

    study = load_study(Path("configs/demo.yaml"))
    collect_source(study)
    resolve_accounts(study)
    fetch_repos(study)
    convert_records(study)
    build_tables(study)

A stage can be called again at any time: it does only what is missing, or writes the same again.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster import derivation, filtering
from backfill_dagster.accounting import build_accounts
from backfill_dagster.attrition.build import build_attrition
from backfill_dagster.connections import Connections, with_connections
from backfill_dagster.crawling import fetch_repos as fetch_repos
from backfill_dagster.crawling import hosts_to_fetch as hosts_to_fetch
from backfill_dagster.crawling import waiting_accounts as waiting_accounts
from backfill_dagster.derived.feed_use import PostsUsedInFeeds
from backfill_dagster.dictionary.written import write_dictionary
from backfill_dagster.dids.collect import EXCLUDE_FIELD, SOURCE_FIELD, CollectedDids, collect_dids
from backfill_dagster.dids.entries import SourceAccess
from backfill_dagster.dids.sources.by_type import entry_source
from backfill_dagster.dids.sources.shared import SharedAccounts
from backfill_dagster.dids.sources.union import joint_stamp
from backfill_dagster.errors import StorageError
from backfill_dagster.fingerprints import records_fingerprint
from backfill_dagster.interrupts import run_interruptible
from backfill_dagster.manifest.written import write_manifest
from backfill_dagster.metadata_stores.of_study import write_user_metadata
from backfill_dagster.monitoring import events
from backfill_dagster.monitoring.study_metrics import unmeasured
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.conversion import (
    ConversionReport,
    PackFiles,
    convert_pack,
    converted_packs,
    read_counts,
)
from backfill_dagster.records.settings import RecordSettings, StudyPeriod
from backfill_dagster.records.tables import COUNTS_SCHEMA
from backfill_dagster.records.windows import UNDATED, granularity_of, study_windows
from backfill_dagster.repos.packs import (
    PACK_SCHEMA,
    pack_keys,
    pack_sizes,
)
from backfill_dagster.repos.snapshots import snapshots
from backfill_dagster.resolving import resolve_accounts as resolve_accounts
from backfill_dagster.sharing.rehydration import build_rehydration
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    SOURCE_KEY,
    SOURCE_REJECTS_KEY,
    account_lots,
    current_snapshots,
    shown_snapshots,
    source_dids,
    study_tables,
)
from backfill_dagster.survivorship.build import build_account_history, build_record_changes
from backfill_dagster.tables.build import PartitionReport, WindowedTable, build_together, remove_other_tables
from backfill_dagster.tables.contents import TableContents
from backfill_dagster.tables.inspection import Inspection, inspect_windows
from backfill_dagster.tables.ledger import LEDGER_SCHEMA, note_built
from backfill_dagster.workers import as_they_end, worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.entries import EntrySource
    from backfill_dagster.monitoring.study_metrics import StudyMetrics
    from backfill_dagster.network.limits import HostGates

# Packs whose counts are held at once: of a hundred accounts as a rule, with some ten counts each.
_PACKS_AT_ONCE = 64
_FATE = ("table", "fate", "reason")


def collect_source(
    study: Study, gates: HostGates | None = None, *, metrics: StudyMetrics | None = None
) -> CollectedDids:
    """Stage 1: read the source, keep each well-formed DID once, and store both what was kept and what was not."""
    storage = StudyStorage(study.location)
    collected = read_source(study, gates, metrics=metrics)
    storage.write(SOURCE_REJECTS_KEY, collected.rejects)
    storage.write(SOURCE_KEY, collected.dids)
    return collected


def read_source(
    study: Study, gates: HostGates | None = None, *, metrics: StudyMetrics | None = None
) -> CollectedDids:
    """Read the study's source less what it excludes, and store nothing; asks servers only if these lists need it."""
    storage = StudyStorage(study.location)
    source, exclude = _account_lists(study)
    if isinstance(source, SharedAccounts):
        source.check_asked({*study.record_types, *study.other_record_types})
    tombstones = Tombstones.load(storage)

    async def read(connections: Connections | None) -> CollectedDids:
        access = SourceAccess(scratch, connections)
        return await collect_dids(source, access, exclude=exclude, tombstones=tombstones)

    with storage.scratch() as scratch:
        if source.needs_network or (exclude is not None and exclude.needs_network):
            return with_connections(study, gates, read, metrics=metrics)
        return run_interruptible(read(None))


def source_stamp(study: Study) -> str | None:
    """Return what changes whenever the study's source, or what it excludes, may have; None if nothing tells.

    Raises SourceError if a list is not there.
    """
    source, exclude = _account_lists(study)
    return joint_stamp([source] if exclude is None else [source, exclude])


def _account_lists(study: Study) -> tuple[EntrySource, EntrySource | None]:
    source = entry_source(study.source, SOURCE_FIELD, storage=study.storage.location)
    if study.exclude is None:
        return source, None
    return source, entry_source(study.exclude, EXCLUDE_FIELD, storage=study.storage.location)


@dataclass(slots=True)
class ConversionProgress:
    """How far a conversion is: packs, and records read."""

    total: int
    done: int = 0
    records: int = 0


def convert_records(
    study: Study,
    pds_hosts: Sequence[str] | None = None,
    *,
    again: bool = False,
    on_pack: Callable[[ConversionReport], None] = lambda _: None,
    on_progress: Callable[[ConversionProgress], None] = lambda _: None,
    metrics: StudyMetrics | None = None,
) -> int:
    """Stage 4: decode, type and classify the records of every stored pack that holds a snapshot.

    Packs converted with the same settings before are passed over, unless they are to be converted `again`.
    Returns how many were converted.
    """
    storage, metrics = StudyStorage(study.location), metrics or unmeasured()
    on_progress = metrics.following("records", on_progress)
    filtering.read_filter_lists(study)
    filters, fingerprint = filtering.stored_filters(study), records_fingerprint(study)
    settings, granularity = record_settings(study), granularity_of(study.time_range)
    todo = packs_to_convert(study, pds_hosts, again=again)
    if not todo:
        return 0
    sizes = pack_sizes(storage)
    # The largest first: what comes last is short then, and no worker waits long for the others.
    todo.sort(key=lambda pack: -sizes[pack[2]])
    count = study.processing.worker_count
    with metrics.workers(count), worker_pool(count) as workers:
        futures = (
            workers.submit(
                convert_pack,
                study.location,
                pack_files(storage, *pack),
                settings,
                filters,
                granularity,
                fingerprint,
            )
            for pack in todo
        )
        progress = ConversionProgress(total=len(todo))
        on_progress(progress)
        failures: list[StorageError] = []
        for future in as_they_end(futures, count):
            try:
                report = future.result()
            except StorageError as error:
                # A damaged file costs its pack; what the others hold is converted first.
                failures.append(error)
                continue
            events.emit(
                events.PACK_CONVERTED,
                host=report.pds_host,
                pack=report.pack,
                records=sum(number for *_, number in report.counts),
            )
            on_pack(report)
            metrics.converted(report)
            progress.done += 1
            progress.records += sum(number for *_, number in report.counts)
            on_progress(progress)
    if failures:
        raise failures[0]
    return len(todo)


def count_converted(study: Study, pds_hosts: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Return, of each of these hosts, what became of the records of the snapshots that it gave.

    As `table, fate, reason, records`.
    """
    storage = StudyStorage(study.location)
    by_host = current_snapshots(study).partition_by("pds_host", as_dict=True)
    nobody = pl.DataFrame(schema=dict.fromkeys(("did", "pds_host", "pack"), pl.String))
    counted = {}
    for host in pds_hosts:
        own = by_host.get((host,), nobody)
        packs = own.select("pds_host", "pack").unique().sort(pl.all()).rows()
        sums = [COUNTS_SCHEMA.to_frame().select(*_FATE, "records")]
        for first in range(0, len(packs), _PACKS_AT_ONCE):
            counts = read_counts(storage, packs[first : first + _PACKS_AT_ONCE])
            counts = counts.join(own, on=["did", "pack"], how="semi")
            sums.append(counts.group_by(_FATE).agg(pl.col("records").sum()))
        counted[host] = pl.concat(sums).group_by(_FATE).agg(pl.col("records").sum())
    return counted


def stale_windows(study: Study) -> dict[str, list[str]]:
    """Return, of each table, the time windows whose records have changed since they were built, oldest first.

    Or that were never built, or whose files are not those that were written. Reads indexes, no records.
    """
    windows = study_windows(study.time_range)
    return {name: table.stale(windows) for name, table in record_tables(study).items()}


def is_undated_stale(study: Study) -> bool:
    """Tell whether the undated rows of any table have changed since they were built; reads no records."""
    return any(table.stale([UNDATED]) for table in record_tables(study).values())


def build_table(
    study: Study,
    table: str,
    windows: Sequence[str] | None = None,
    *,
    again: bool = False,
    metrics: StudyMetrics | None = None,
) -> list[PartitionReport]:
    """Stage 5: bring one table's time windows (all of the study's, or those named) up to date.

    Or build them all `again`. Returns a report of each, also of those that were up to date.
    """
    chosen = study_windows(study.time_range) if windows is None else windows
    write_dictionary(study)
    metrics = metrics or unmeasured()
    return record_tables(study, [table])[table].build(
        chosen,
        again=again,
        workers=_workers(study, metrics),
        on_cost=partial(metrics.worked, table, "build"),
    )


def inspect_table(study: Study, table: str, windows: Sequence[str]) -> Inspection:
    """Stage 5: read the final files of these windows again; what is not what it must be is stale from then on."""
    storage, granularity = StudyStorage(study.location), granularity_of(study.time_range)
    inspection = inspect_windows(storage, table, granularity, windows)
    folders = [f"tables/{table}/{granularity.folder(window)}" for window in inspection.faulty]
    if folders:
        note_built(storage, table, folders, LEDGER_SCHEMA.to_frame())
    return inspection


def build_undated_rows(
    study: Study, *, again: bool = False, metrics: StudyMetrics | None = None
) -> dict[str, PartitionReport]:
    """Stage 5: bring the rows whose date cannot be believed up to date, per table; or build them all `again`.

    Tables that the study no longer has are removed.
    """
    tables, metrics = record_tables(study), metrics or unmeasured()
    remove_other_tables(StudyStorage(study.location), list(tables))
    reports = build_together(
        list(tables.values()),
        [UNDATED],
        again=again,
        workers=_workers(study, metrics),
        on_cost=lambda _, cost: metrics.worked(UNDATED, "build", cost),
    )
    return {name: report for name, [report] in zip(tables, reports, strict=True)}


def build_tables(study: Study, *, again: bool = False) -> pl.DataFrame:
    """Stages 5 and 6, whole: every table, the undated rows, what is derived, the accounts, and what was lost.

    What is up to date stays as it is, unless all is to be built `again`.
    """
    build_record_tables(study, again=again)
    build_accounts(study)
    build_record_changes(study)
    build_account_history(study)
    build_attrition(study)
    build_rehydration(study)
    write_user_metadata(study)
    # Last: what it reads besides the tables may be gone.
    build_derived(study, again=again)
    write_manifest(study)
    return StudyStorage(study.location).read(ACCOUNTS_KEY)


def build_derived(study: Study, *, again: bool = False) -> None:
    """Stage 6: bring all that is made of the tables up to date, or make it `again`; what no longer belongs goes."""
    tables, windows = study_tables(study), study_windows(study.time_range)
    derivation.remove_other_derived(study)
    if study.discovery is not None:
        derivation.discover_engaged(study, tables, source_dids(study), again=again)
    for name in derivation.derived_names(study):
        if name == PostsUsedInFeeds.name:
            derivation.read_feeds(study)
        derivation.build_derived(study, tables, name, windows, again=again)


def build_record_tables(study: Study, *, again: bool = False) -> None:
    """Stage 5, but for the accounts: bring every table and the undated rows up to date, or build all `again`."""
    tables, windows = record_tables(study), [*study_windows(study.time_range), UNDATED]
    build_together(list(tables.values()), windows, again=again, workers=_workers(study, unmeasured()))
    remove_other_tables(StudyStorage(study.location), list(tables))


def rebuild(study: Study) -> None:
    """Stages 4 and 5 again: convert what is not converted, and build all tables."""
    convert_records(study)
    build_tables(study)


def record_settings(study: Study) -> RecordSettings:
    """Return what the study wants of the records."""
    return RecordSettings(
        record_types=frozenset(study.record_types),
        period=StudyPeriod(study.time_range.start_date, study.time_range.end_date),
        outside=study.time_range.outside,
        keep_record_json=study.processing.record_json,
        other_types=frozenset(study.other_record_types),
    )


def hosts_to_convert(study: Study, *, again: bool = False) -> list[str]:
    """Return the hosts with packs to be converted."""
    return sorted({host for host, _, _ in packs_to_convert(study, again=again)})


def record_tables(study: Study, only: Sequence[str] | None = None) -> dict[str, WindowedTable]:
    """Return the study's tables, all or only those named, with what belongs in each by now."""
    storage, time_range = StudyStorage(study.location), study.time_range
    tables = [table for table in study_tables(study) if only is None or table in only]
    contents = TableContents(storage, shown_snapshots(study), tables)
    granularity, windows = granularity_of(time_range), study_windows(time_range)
    return {table: WindowedTable(storage, table, granularity, windows, contents) for table in tables}


def _workers(study: Study, metrics: StudyMetrics) -> Callable[[], AbstractContextManager[Executor]]:
    @contextmanager
    def workers() -> Iterator[Executor]:
        count = study.processing.worker_count
        with metrics.workers(count), worker_pool(count) as pool:
            yield pool

    return workers


def packs_to_convert(
    study: Study, pds_hosts: Sequence[str] | None = None, *, again: bool = False
) -> list[tuple[str, str, str]]:
    """Return (PDS host, pack, key) of packs that hold a snapshot and are not converted, or are to be again."""
    storage, fingerprint = StudyStorage(study.location), records_fingerprint(study)
    wanted: set[tuple[str, str]] = set()
    for lot in account_lots(study):
        wanted.update(snapshots(lot.directory, lot.ledger).select("pds_host", "pack").unique().iter_rows())
    packs = [one for one in pack_keys(storage, pds_hosts) if one[:2] in wanted]
    done = set() if again else converted_packs(storage, [one[:2] for one in packs], fingerprint)
    return [one for one in packs if one[:2] not in done]


def pack_files(storage: StudyStorage, host: str, pack: str, key: str) -> PackFiles:
    """Name a pack's blocks files, and the digests that they must have."""
    [listed] = storage.collect([storage.scan([key], PACK_SCHEMA).select("blocks_files").head(1)], [key])
    folder = f"repos/{partition_folder(host)}"
    files = listed["blocks_files"].to_list()[0] or []
    return PackFiles(host, pack, key, tuple((f"{folder}/{file['name']}", file["sha256"]) for file in files))
