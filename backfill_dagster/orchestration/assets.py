"""The lineage of one study: each asset selects its partitions, calls a stage, and reports.

The assets by host and by time window take any range of partitions in one run. They report each partition as it is
done, by an event of its own rather than by one result for the range, so that a host that failed is shown failed
beside those that worked.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg
import polars as pl

from backfill_dagster import accounting, fingerprints, pipeline, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.dids.sources.lineage import ACCOUNTS, RECORDS
from backfill_dagster.filtering import stored_lists
from backfill_dagster.monitoring.study_metrics import StudyMetrics
from backfill_dagster.orchestration.checks import (
    accounts_check_results,
    accounts_checks,
    table_check_results,
    table_checks,
)
from backfill_dagster.orchestration.columns import column_metadata
from backfill_dagster.orchestration.derived_assets import derived_assets
from backfill_dagster.orchestration.frozen_asset import frozen_assets
from backfill_dagster.orchestration.handoff_assets import handoff_assets
from backfill_dagster.orchestration.loss_assets import loss_assets
from backfill_dagster.orchestration.manifest_asset import manifest_asset
from backfill_dagster.orchestration.metadata import (
    accounts_metadata,
    conversion_metadata,
    directory_metadata,
    file_path,
    host_metadata,
    report_metadata,
    source_metadata,
    window_metadata,
)
from backfill_dagster.orchestration.metadata_assets import metadata_assets
from backfill_dagster.orchestration.partitions import pds_partitions, register_hosts, time_partitions
from backfill_dagster.orchestration.progress import (
    conversion_standing,
    directory_standing,
    fetch_standing,
    reported_progress,
)
from backfill_dagster.orchestration.rehydration_asset import rehydration_assets
from backfill_dagster.orchestration.resources import LimitsResource, StudyLockResource
from backfill_dagster.orchestration.run_settings import (
    AssetFetchSettings,
    BuildSettings,
    ConversionSettings,
    TableSettings,
    directory_settings_class,
    fetch_settings_class,
)
from backfill_dagster.orchestration.stage import (
    NO_OUTPUT,
    SINGLE_RUN,
    asset_key,
    other_backfills,
    stage,
)
from backfill_dagster.orchestration.watched_run import count, count_rows
from backfill_dagster.records.conversion import ConversionReport
from backfill_dagster.records.outcomes import Fate
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.records.windows import granularity_of
from backfill_dagster.report.page import build_report
from backfill_dagster.repos.crawl import HostReport
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.storage import StudyStorage, partition_folder
from backfill_dagster.tables.ledger import built_rows

_FETCHED = {
    "repos": "The repositories of the accounts of each PDS: downloaded politely, proven whole and authentic, and "
    "stored with every record's exact bytes.",
    "records": "The records that the filters list, of the accounts of each PDS: asked for one by one, each proven to "
    "be there or not to be, and stored with their exact bytes.",
    "list_records": "The records of the accounts of each PDS as it lists them, collection by collection: stored with "
    "the bytes that their CIDs name, and with no proof that they are all, or authentic.",
}
# Failed hosts that a message names; its metadata names all.
_NAMED_HOSTS = 20


def study_assets(study: Study) -> list[dg.AssetsDefinition]:
    """Return all assets of one study, upstream first."""
    source = _source_dids(study)
    directory = _directory(study, source)
    repos = _repos(study, directory)
    records = _records(study, repos)
    tables = [_table(study, name, records) for name in study_files.study_tables(study)]
    undated = _undated(study, records)
    derived = derived_assets(study, tables)
    accounts = _accounts(study, [*tables, undated])
    handed_over = handoff_assets(study, tables, undated)
    metadata = metadata_assets(study, accounts)
    losses = [*loss_assets(study, directory, repos, accounts), *rehydration_assets(study, accounts)]
    report = _report(study, [accounts, *losses])
    made = [source, directory, repos, records, *tables, undated, *derived, accounts, *losses, report]
    # What is made of the tables, so that whatever builds any of it has the manifest written anew.
    manifest = manifest_asset(study, [*derived, accounts, *losses, report])
    return [*made, *handed_over, *metadata, manifest, *frozen_assets(study, manifest)]


def _source_dids(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "source_dids"),
        group_name=study.name,
        metadata=column_metadata(study, "source_dids"),
        kinds={"parquet"},
        deps=other_backfills(study, ACCOUNTS),
        description=f"The DIDs to collect, read from the study's {study.source.type} source, each once. "
        "Inputs that are no DID, stand twice or are excluded, are listed in source_rejects.parquet with the reason.",
    )
    def source_dids(
        context: dg.AssetExecutionContext, limits: LimitsResource, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with stage(context, study, study_lock) as metrics:
            collected = pipeline.collect_source(study, limits.gates(), metrics=metrics)
            count(
                context,
                "source_dids",
                given=collected.given,
                kept=collected.dids.height,
                left_out=collected.rejects.height,
            )
        return dg.MaterializeResult(
            metadata=source_metadata(collected, study.location / study_files.SOURCE_KEY),
            data_version=_version(collected.dids["did"]),
        )

    return source_dids


def _directory(study: Study, source: dg.AssetsDefinition) -> dg.AssetsDefinition:
    settings_class: Any = directory_settings_class(study)

    @dg.asset(
        key=asset_key(study, "directory"),
        group_name=study.name,
        metadata=column_metadata(study, "directory"),
        kinds={"parquet", "http"},
        deps=[source],
        description="Each DID's document, resolved at the PLC directory or its own web host: handle, PDS, signing "
        "key, or why there is none. Registers the hosts as partitions.",
    )
    def directory(
        context: dg.AssetExecutionContext,
        config: settings_class,
        limits: LimitsResource,
        study_lock: StudyLockResource,
    ) -> dg.MaterializeResult[None]:
        with (
            stage(context, study, study_lock) as metrics,
            reported_progress(context, "Looking up", directory_standing) as report_progress,
        ):
            resolved = pipeline.resolve_accounts(
                study,
                limits.gates(),
                network=config.over(study.network),
                on_progress=report_progress,
                metrics=metrics,
            )
            count(context, "directory", **dict(sorted(resolved.states.items())))
        new = register_hosts(context.instance, study, resolved.hosts)
        return dg.MaterializeResult(
            metadata=directory_metadata(
                resolved, study.location / study_files.DIRECTORY_KEY, new_hosts=len(new)
            ),
            data_version=dg.DataVersion(resolved.version[:16]),
        )

    return directory


def _repos(study: Study, directory: dg.AssetsDefinition) -> dg.AssetsDefinition:
    # Made at run time, so that the launchpad shows the YAML's values as defaults.
    settings_class: Any = fetch_settings_class(study, AssetFetchSettings)

    @dg.asset(
        key=asset_key(study, "repos"),
        group_name=study.name,
        metadata=column_metadata(study, "repos"),
        kinds={"parquet", "http"},
        # What to ask for is on a list, where single records are fetched.
        deps=[directory, *(other_backfills(study, RECORDS) if study.fetch == "records" else [])],
        partitions_def=pds_partitions(study),
        backfill_policy=SINGLE_RUN,
        output_required=False,
        dagster_type=NO_OUTPUT,
        code_version=f"{study.processing.verify}{'' if study.fetch == 'repos' else f' {study.fetch}'}",
        description=f"{_FETCHED[study.fetch]} Accounts that are settled already are passed over.",
    )
    def repos(
        context: dg.AssetExecutionContext,
        config: settings_class,
        limits: LimitsResource,
        study_lock: StudyLockResource,
    ) -> Iterator[dg.AssetMaterialization]:
        with stage(context, study, study_lock) as metrics:
            yield from _fetch(context, study, config, limits, metrics)

    return repos


def _fetch(
    context: dg.AssetExecutionContext,
    study: Study,
    config: AssetFetchSettings,
    limits: LimitsResource,
    metrics: StudyMetrics,
) -> Iterator[dg.AssetMaterialization]:
    hosts = config.hosts_among(context.partition_keys)
    reports: dict[str, HostReport] = {}

    def on_host(report: HostReport) -> None:
        # A host whose accounts moved in from another one comes a second time.
        if report.pds_host in reports:
            reports[report.pds_host].add(report)
            report = reports[report.pds_host]
        else:
            reports[report.pds_host] = report
        if report.pds_host not in hosts:
            register_hosts(context.instance, study, [report.pds_host])
        if not (report.failed or report.left):
            # At once: a fetch can take days, and be ended from outside.
            context.log_event(_host_event(context, study, report))

    with reported_progress(context, "Fetching", fetch_standing) as report_progress:
        pipeline.fetch_repos(
            study,
            hosts,
            mode=config.fetch_mode,
            only_dids=config.accounts,
            processing=config.over(study.processing),
            gates=limits.gates(),
            on_host=on_host,
            on_progress=report_progress,
            metrics=metrics,
        )
    _count_fetch(context, reports.values())
    failed = sorted(report.pds_host for report in reports.values() if report.failed)
    silent = set(context.partition_keys if failed else hosts) - reports.keys()
    for host in sorted(_settled_hosts(study, config, silent, run_fails=bool(failed))):
        yield _host_event(context, study, HostReport(host))
    left = sum(report.left for report in reports.values())
    if left:
        context.log.warning(f"the run's time is used up; {left} accounts are left for the next one")
    if failed:
        raise dg.Failure(
            description=f"{len(failed)} of {len(hosts)} hosts could not be read whole: "
            f"{', '.join(_why(reports[host]) for host in failed[:_NAMED_HOSTS])}"
            f"{', …' * (len(failed) > _NAMED_HOSTS)}. "
            "What the others gave is stored; run the same again to fetch only what is missing.",
            metadata={"hosts": failed, "reasons": _reasons(reports[host] for host in failed)},
            allow_retries=False,
        )


def _count_fetch(context: dg.AssetExecutionContext, reports: Iterable[HostReport]) -> None:
    outcomes: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for report in reports:
        outcomes.update(report.outcomes)
        totals.update(
            records_fetched=report.records,
            bytes_received=report.bytes_received,
            requests=report.requests,
            pauses=report.pauses,
            accounts_left=report.left,
            packs=len(report.packs),
            hosts=1,
            hosts_failed=report.failed,
        )
    count(
        context,
        "repos",
        accounts_asked=sum(outcomes.values()),
        accounts_complete=outcomes[Outcome.COMPLETE] + outcomes[Outcome.UNCHANGED],
        accounts_failed=outcomes[Outcome.FAILED],
        **totals,
    )


def _settled_hosts(
    study: Study, config: AssetFetchSettings, silent: set[str], *, run_fails: bool
) -> set[str]:
    """Return those hosts, of the ones that a fetch had no work on, that are to be reported as done all the same.

    Those that it was asked for, if really nothing is left to do on them. If the run fails, also the others among its
    partitions: Dagster shows each partition of a failed run as failed that it was told nothing about.
    """
    if config.only_dids and not run_fails:
        return set()
    if silent and (config.only_hosts or config.only_dids or config.fetch_mode is FetchMode.FAILED):
        return silent - set(pipeline.hosts_to_fetch(study, FetchMode.UNSETTLED))
    return silent


def _host_event(
    context: dg.AssetExecutionContext, study: Study, report: HostReport
) -> dg.AssetMaterialization:
    storage, folder = StudyStorage(study.location), f"repos/{partition_folder(report.pds_host)}"
    return dg.AssetMaterialization(
        asset_key=context.asset_key,
        partition=report.pds_host,
        metadata=host_metadata(
            read_ledger(storage, [report.pds_host]),
            report,
            stored_bytes=sum(storage.sizes(folder).values()),
            path=study.location / folder,
        ),
    )


def _why(report: HostReport) -> str:
    """Name a host with what its accounts failed for."""
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in report.reasons.most_common())
    return f"{report.pds_host} ({reasons})" if reasons else report.pds_host


def _reasons(reports: Iterable[HostReport]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.reasons)
    return dict(total)


def _records(study: Study, repos: dg.AssetsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "records"),
        group_name=study.name,
        metadata=column_metadata(study, "records"),
        kinds={"parquet", "polars"},
        deps=[repos, *other_backfills(study, RECORDS)],
        partitions_def=pds_partitions(study),
        backfill_policy=SINGLE_RUN,
        output_required=False,
        dagster_type=NO_OUTPUT,
        code_version=fingerprints.settings_fingerprint(study),
        description="Every record of each PDS's repositories: decoded, typed, dated, and either kept, filtered or "
        "rejected with the reason.",
    )
    def records(
        context: dg.AssetExecutionContext, config: ConversionSettings, study_lock: StudyLockResource
    ) -> Iterator[dg.AssetMaterialization]:
        hosts = list(context.partition_keys)
        converted: Counter[str] = Counter()

        fates: Counter[str] = Counter()

        def on_pack(report: ConversionReport) -> None:
            converted[report.pds_host] += 1
            for _, fate, _, number in report.counts:
                fates[fate] += number

        with (
            stage(context, study, study_lock) as metrics,
            reported_progress(context, "Converting", conversion_standing) as report_progress,
        ):
            pipeline.convert_records(
                study,
                hosts,
                again=config.again,
                on_pack=on_pack,
                on_progress=report_progress,
                metrics=metrics,
            )
            by_fate = {f"records_{fate}": fates[fate] for fate in Fate}
            count(context, "records", packs=converted.total(), **by_fate)
            counts, lists = pipeline.count_converted(study, hosts), stored_lists(study)
        for host in hosts:
            folder = study.location / "records" / partition_folder(host)
            yield dg.AssetMaterialization(
                asset_key=context.asset_key,
                partition=host,
                metadata=conversion_metadata(
                    counts[host], lists, packs_converted=converted[host], path=folder
                ),
            )

    return records


def _table(study: Study, name: str, records: dg.AssetsDefinition) -> dg.AssetsDefinition:
    table, granularity = TABLE_BY_NAME[name], granularity_of(study.time_range)

    @dg.asset(
        key=asset_key(study, name),
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[dg.AssetDep(records, partition_mapping=dg.AllPartitionMapping())],
        partitions_def=time_partitions(study.time_range),
        backfill_policy=SINGLE_RUN,
        output_required=False,
        dagster_type=NO_OUTPUT,
        code_version=fingerprints.settings_fingerprint(study),
        check_specs=table_checks(asset_key(study, name)),
        description=f"{table.description} By {granularity.word} of the record's true creation.",
        metadata=column_metadata(study, name),
    )
    def windows(
        context: dg.AssetExecutionContext, config: TableSettings, study_lock: StudyLockResource
    ) -> Iterator[dg.AssetMaterialization | dg.AssetCheckResult]:
        with stage(context, study, study_lock) as metrics:
            asked = list(context.partition_keys)
            reports = pipeline.build_table(study, name, asked, again=config.again, metrics=metrics)
            rebuilt = [report for report in reports if report.rebuilt]
            inspection = pipeline.inspect_table(study, name, [report.partition for report in rebuilt])
            table_rows = built_rows(StudyStorage(study.location), name)
            count(context, name, windows=len(reports), windows_built=len(rebuilt))
            count_rows(context, name, table_rows)
        context.log.info(
            f"{name}: {sum(report.rows for report in reports):,} rows in {len(reports)} {granularity.word}s, "
            f"{len(rebuilt)} of which were built"
        )
        for report in rebuilt if config.only_stale else reports:
            folder = study.location / "tables" / name / granularity.folder(report.partition)
            yield dg.AssetMaterialization(
                asset_key=context.asset_key,
                partition=report.partition,
                metadata=window_metadata(report, folder, table_rows=table_rows),
            )
        yield from table_check_results(context.asset_key, inspection)

    return windows


def _undated(study: Study, records: dg.AssetsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "undated"),
        group_name=study.name,
        metadata=column_metadata(study, "undated"),
        kinds={"parquet", "polars"},
        deps=[dg.AssetDep(records, partition_mapping=dg.AllPartitionMapping())],
        code_version=fingerprints.settings_fingerprint(study),
        description="Records whose creation date is missing, unreadable, before the network or in the future: kept "
        "apart from the tables, one folder per table, with the reason in date_quality.",
    )
    def undated(
        context: dg.AssetExecutionContext, config: BuildSettings, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with stage(context, study, study_lock) as metrics:
            reports = pipeline.build_undated_rows(study, again=config.again, metrics=metrics)
            count(context, "undated", **{table: report.rows for table, report in reports.items()})
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": sum(report.rows for report in reports.values()),
                **{name: report.rows for name, report in reports.items()},
                "path": file_path(study.location / "undated"),
            }
        )

    return undated


def _accounts(study: Study, tables: list[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    deps = [dg.AssetDep(table, partition_mapping=_all_of(table)) for table in tables]

    @dg.asset(
        key=asset_key(study, "accounts"),
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=deps,
        check_specs=accounts_checks(asset_key(study, "accounts")),
        description="Each account with its one final state, and what became of every one of its records.",
        metadata=column_metadata(study, "accounts"),
    )
    def accounts(context: dg.AssetExecutionContext, study_lock: StudyLockResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows it only bare
        with stage(context, study, study_lock) as metrics:
            built = accounting.build_accounts(study)
            listed = built.sums.of_source
            states = dict(listed.by("state").sort("state").iter_rows())
            metrics.accounted(
                states,
                {table: listed.total(table) for table in study_files.study_tables(study)},
                filtered=listed.total("records_filtered"),
                rejected=listed.total("records_rejected"),
            )
            count(context, "accounts", **states)
        return dg.MaterializeResult(
            metadata=accounts_metadata(built.sums, study.location / study_files.ACCOUNTS_KEY),
            check_results=list(accounts_check_results(study, built)),
        )

    return accounts


def _report(study: Study, made_of: list[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "report"),
        group_name=study.name,
        kinds={"html", "matplotlib"},
        deps=made_of,
        automation_condition=dg.AutomationCondition.eager(),
        description="One page to read and to print: records per day, accounts by final state, hosts by size and speed, "
        "what was left out and why, how the accounts cover the study period, what was lost on the way, and how fast "
        "what was collected goes. Names no account. Open the file at `path` in a browser.",
    )
    def report(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with stage(context, study, study_lock):
            made = build_report(study)
        return dg.MaterializeResult(metadata=report_metadata(made, study.location / made.key))

    return report


def _all_of(table: dg.AssetsDefinition) -> dg.PartitionMapping | None:
    return dg.AllPartitionMapping() if table.partitions_def else None


def _version(values: pl.Series) -> dg.DataVersion:
    digest = hashlib.sha256()
    for value in values.sort():
        digest.update(f"{value}\n".encode())
    return dg.DataVersion(digest.hexdigest()[:16])
