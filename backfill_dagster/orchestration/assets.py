"""The lineage of one study: each asset selects its partitions, calls a stage, and reports.

The per-host and per-month assets take any range of partitions in one run. They report each partition as it is
done, by an event of its own rather than by one result for the range, so that a host that failed is shown failed
beside those that worked.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import polars as pl

from backfill_dagster import pipeline
from backfill_dagster.config import Study
from backfill_dagster.orchestration.checks import accounts_check_results, accounts_checks
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.metadata import (
    accounts_metadata,
    conversion_metadata,
    directory_metadata,
    host_metadata,
    month_metadata,
    source_metadata,
)
from backfill_dagster.orchestration.partitions import month_partitions, pds_partitions, register_hosts
from backfill_dagster.orchestration.progress import ProgressLog
from backfill_dagster.orchestration.resources import LimitsResource, StudyLockResource
from backfill_dagster.orchestration.run_settings import (
    ConversionSettings,
    FetchSettings,
    fetch_settings_class,
)
from backfill_dagster.records.conversion import ConversionReport
from backfill_dagster.records.tables import TABLE_BY_NAME, Column
from backfill_dagster.repos.crawl import HostReport
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.repos.snapshots import latest_attempts
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.tables.accounts import ACCOUNT_COLUMNS
from backfill_dagster.tables.build import remove_other_months
from backfill_dagster.tables.months import study_months

_SINGLE_RUN = dg.BackfillPolicy.single_run()
# These assets hand on nothing but what they stored; Dagster's stubs do not count Nothing among its types.
_NO_OUTPUT: Any = dg.Nothing


def study_assets(study: Study) -> list[dg.AssetsDefinition]:
    """Return all assets of one study, upstream first."""
    source = _source_dids(study)
    directory = _directory(study, source)
    repos = _repos(study, directory)
    records = _records(study, repos)
    tables = [_table(study, name, records) for name in pipeline.study_tables(study)]
    undated = _undated(study, records)
    return [source, directory, repos, records, *tables, undated, _accounts(study, [*tables, undated])]


def _key(study: Study, name: str) -> dg.AssetKey:
    return dg.AssetKey([study.name, name])


@contextmanager
def _stage(context: dg.AssetExecutionContext, study: Study, study_lock: StudyLockResource) -> Iterator[None]:
    """Do a stage's work: while no purge and no other whole run of the study does, and with clear failures."""
    with clear_failures():
        study_lock.share(study, context.run)
        yield


def _source_dids(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(study, "source_dids"),
        group_name=study.name,
        kinds={"parquet"},
        description=f"The DIDs to collect, read from the study's {study.source.type} source, each once. "
        "Inputs that are no DID, or stand twice, are listed in source_rejects.parquet with the reason.",
    )
    def source_dids(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with _stage(context, study, study_lock):
            collected = pipeline.collect_source(study)
        return dg.MaterializeResult(
            metadata=source_metadata(collected, study.root / pipeline.SOURCE_KEY),
            data_version=_version(collected.dids["did"]),
        )

    return source_dids


def _directory(study: Study, source: dg.AssetsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(study, "directory"),
        group_name=study.name,
        kinds={"parquet", "http"},
        deps=[source],
        description="Each DID's document, resolved at the PLC directory or its own web host: handle, PDS, signing "
        "key, or why there is none. Registers the hosts as partitions.",
    )
    def directory(
        context: dg.AssetExecutionContext, limits: LimitsResource, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with _stage(context, study, study_lock):
            resolved = pipeline.resolve_accounts(study, limits.gates())
        hosts = resolved["pds_host"].drop_nulls().unique()
        new = register_hosts(context.instance, study, hosts)
        return dg.MaterializeResult(
            metadata={
                **directory_metadata(resolved, study.root / pipeline.DIRECTORY_KEY),
                "new_hosts": len(new),
            },
            data_version=_version(resolved.select(pl.struct("did", "pds", "state").hash(seed=0))["did"]),
        )

    return directory


def _repos(study: Study, directory: dg.AssetsDefinition) -> dg.AssetsDefinition:
    # Made at run time, so that the launchpad shows the YAML's values as defaults.
    settings_class: Any = fetch_settings_class(study)

    @dg.asset(
        key=_key(study, "repos"),
        group_name=study.name,
        kinds={"parquet", "http"},
        deps=[directory],
        partitions_def=pds_partitions(study),
        backfill_policy=_SINGLE_RUN,
        output_required=False,
        dagster_type=_NO_OUTPUT,
        code_version=study.processing.verify,
        description="The repositories of the accounts of each PDS: downloaded politely, proven whole and authentic, "
        "and stored with every record's exact bytes. Accounts that are settled already are passed over.",
    )
    def repos(
        context: dg.AssetExecutionContext,
        config: settings_class,
        limits: LimitsResource,
        study_lock: StudyLockResource,
    ) -> Iterator[dg.AssetMaterialization]:
        with _stage(context, study, study_lock):
            yield from _fetch(context, study, config, limits)

    return repos


def _fetch(
    context: dg.AssetExecutionContext, study: Study, config: FetchSettings, limits: LimitsResource
) -> Iterator[dg.AssetMaterialization]:
    hosts = list(context.partition_keys)
    reports: dict[str, HostReport] = {}

    def on_host(report: HostReport) -> None:
        # A host whose accounts moved in from another one comes a second time.
        if report.pds_host in reports:
            reports[report.pds_host].add(report)
        else:
            reports[report.pds_host] = report

    pipeline.fetch_repos(
        study,
        hosts,
        mode=config.fetch_mode,
        processing=config.over(study.processing),
        gates=limits.gates(),
        on_host=on_host,
        on_progress=ProgressLog(context.log.info),
    )
    attempted = sum(sum(report.outcomes.values()) for report in reports.values())
    context.log.info(f"{attempted:,} accounts attempted on {len(reports)} of {len(hosts)} hosts")
    register_hosts(context.instance, study, reports)
    for host in [*hosts, *sorted(reports.keys() - set(hosts))]:
        report = reports.get(host, HostReport(host))
        if not report.failed and not report.left:
            yield _host_event(context, study, report)
    left = sum(report.left for report in reports.values())
    if left:
        context.log.warning(f"the run's time is used up; {left} accounts are left for the next one")
    failed = sorted(report.pds_host for report in reports.values() if report.failed)
    if failed:
        raise dg.Failure(
            description=f"{len(failed)} of {len(hosts)} hosts could not be read whole: {', '.join(failed[:20])}. "
            "What the others gave is stored; run the same again to fetch only what is missing.",
            metadata={"hosts": failed, "reasons": _reasons(reports[host] for host in failed)},
            allow_retries=False,
        )


def _host_event(
    context: dg.AssetExecutionContext, study: Study, report: HostReport
) -> dg.AssetMaterialization:
    folder = study.root / "repos" / partition_folder(report.pds_host)
    attempts = latest_attempts(read_ledger(StudyStorage(study.root), [report.pds_host]))
    return dg.AssetMaterialization(
        asset_key=context.asset_key,
        partition=report.pds_host,
        metadata=host_metadata(attempts, report, folder),
    )


def _reasons(reports: Iterable[HostReport]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.reasons)
    return dict(total)


def _records(study: Study, repos: dg.AssetsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(study, "records"),
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[repos],
        partitions_def=pds_partitions(study),
        backfill_policy=_SINGLE_RUN,
        output_required=False,
        dagster_type=_NO_OUTPUT,
        code_version=pipeline.records_fingerprint(study),
        description="Every record of each PDS's repositories: decoded, typed, dated, and either kept, filtered or "
        "rejected with the reason.",
    )
    def records(
        context: dg.AssetExecutionContext, config: ConversionSettings, study_lock: StudyLockResource
    ) -> Iterator[dg.AssetMaterialization]:
        hosts = list(context.partition_keys)
        counts: dict[str, Counter[tuple[str | None, str, str | None]]] = {host: Counter() for host in hosts}

        def on_pack(report: ConversionReport) -> None:
            for table, fate, reason, number in report.counts:
                counts[report.pds_host][table, fate, reason] += number

        with _stage(context, study, study_lock):
            converted = pipeline.convert_records(study, hosts, again=config.again, on_pack=on_pack)
        context.log.info(f"{converted} packs of {len(hosts)} hosts turned into records")
        for host in hosts:
            folder = study.root / "records" / partition_folder(host)
            yield dg.AssetMaterialization(
                asset_key=context.asset_key,
                partition=host,
                metadata=conversion_metadata(counts[host], folder),
            )

    return records


def _table(study: Study, name: str, records: dg.AssetsDefinition) -> dg.AssetsDefinition:
    table = TABLE_BY_NAME[name]

    @dg.asset(
        key=_key(study, name),
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[dg.AssetDep(records, partition_mapping=dg.AllPartitionMapping())],
        partitions_def=month_partitions(study.time_range),
        backfill_policy=_SINGLE_RUN,
        output_required=False,
        dagster_type=_NO_OUTPUT,
        code_version=pipeline.records_fingerprint(study),
        description=f"{table.description} By month of the record's true creation.",
        metadata={"dagster/column_schema": _column_schema(table.columns)},
    )
    def months(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> Iterator[dg.AssetMaterialization]:
        with _stage(context, study, study_lock):
            reports = pipeline.build_table(study, name, list(context.partition_keys))
        context.log.info(f"{name}: {sum(report.rows for report in reports):,} rows in {len(reports)} months")
        for report in reports:
            folder = study.root / "tables" / name / f"month={report.partition}"
            yield dg.AssetMaterialization(
                asset_key=context.asset_key,
                partition=report.partition,
                metadata=month_metadata(report, folder),
            )

    return months


def _undated(study: Study, records: dg.AssetsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(study, "undated"),
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[dg.AssetDep(records, partition_mapping=dg.AllPartitionMapping())],
        code_version=pipeline.records_fingerprint(study),
        description="Records whose creation date is missing, unreadable, before the network or in the future: kept "
        "apart from the months, one folder per table, with the reason in date_quality.",
    )
    def undated(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with _stage(context, study, study_lock):
            remove_other_months(
                StudyStorage(study.root), study_months(study.time_range), pipeline.study_tables(study)
            )
            reports = pipeline.build_undated_rows(study)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": sum(report.rows for report in reports.values()),
                **{name: report.rows for name, report in reports.items()},
                "path": dg.MetadataValue.path(str((study.root / "undated").absolute())),
            }
        )

    return undated


def _accounts(study: Study, tables: list[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    deps = [dg.AssetDep(table, partition_mapping=_all_of(table)) for table in tables]
    columns = [dg.TableColumn(name, str(kind), text) for name, (kind, text) in ACCOUNT_COLUMNS.items()]

    @dg.asset(
        key=_key(study, "accounts"),
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=deps,
        check_specs=accounts_checks(_key(study, "accounts")),
        description="Each account with its one final state, and what became of every one of its records.",
        metadata={"dagster/column_schema": dg.TableSchema(columns=columns)},
    )
    def accounts(context: dg.AssetExecutionContext, study_lock: StudyLockResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows it only bare
        with _stage(context, study, study_lock):
            built = pipeline.build_accounts(study)
        return dg.MaterializeResult(
            metadata=accounts_metadata(built.accounts, study.root / pipeline.ACCOUNTS_KEY),
            check_results=accounts_check_results(built.accounts, built.misplaced, built.repeated_uris),
        )

    return accounts


def _all_of(table: dg.AssetsDefinition) -> dg.PartitionMapping | None:
    return dg.AllPartitionMapping() if table.partitions_def else None


def _column_schema(columns: Iterable[Column]) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[dg.TableColumn(column.name, str(column.dtype), column.description) for column in columns]
    )


def _version(values: pl.Series) -> dg.DataVersion:
    digest = hashlib.sha256()
    for value in values.sort():
        digest.update(f"{value}\n".encode())
    return dg.DataVersion(digest.hexdigest()[:16])
