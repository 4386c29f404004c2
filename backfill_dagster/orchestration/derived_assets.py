"""The assets that are made of the record tables: derived tables by time window, and whom the study engaged with."""

from collections.abc import Iterator

import dagster as dg

from backfill_dagster import derivation, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.derived.activity import StudyUserActivity
from backfill_dagster.derived.engaged import ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY
from backfill_dagster.derived.feed_use import PostsUsedInFeeds
from backfill_dagster.dids.sources.lineage import FEEDS
from backfill_dagster.orchestration.checks import derived_check_results, derived_checks
from backfill_dagster.orchestration.columns import column_metadata
from backfill_dagster.orchestration.metadata import derived_metadata, engaged_metadata
from backfill_dagster.orchestration.partitions import time_partitions
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.run_settings import BuildSettings, TableSettings
from backfill_dagster.orchestration.stage import (
    NO_OUTPUT,
    SINGLE_RUN,
    asset_key,
    other_backfills,
    stage,
)
from backfill_dagster.orchestration.watched_run import count
from backfill_dagster.records.windows import granularity_of

# Those whose windows are made of the same windows of the tables, and of nothing else.
_SAME_WINDOWS = frozenset({StudyUserActivity.name})


def derived_assets(study: Study, tables: list[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
    """Return the derived tables that the study's YAML asks for, and the lists of its discovery if it has one."""
    made = [_derived(study, name, tables) for name in derivation.derived_names(study)]
    return [*made, *([_engaged(study, tables)] if study.discovery is not None else [])]


def _derived(study: Study, name: str, tables: list[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    granularity = granularity_of(study.time_range)
    mapping = None if name in _SAME_WINDOWS else dg.AllPartitionMapping()
    feeds = other_backfills(study, FEEDS) if name == PostsUsedInFeeds.name else []

    @dg.asset(
        key=asset_key(study, name),
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[*(dg.AssetDep(table, partition_mapping=mapping) for table in tables), *feeds],
        partitions_def=time_partitions(study.time_range),
        backfill_policy=SINGLE_RUN,
        output_required=False,
        dagster_type=NO_OUTPUT,
        check_specs=derived_checks(asset_key(study, name), reconciles=derivation.reconciles(name)),
        description=derivation.DERIVED[name].description,
        metadata=column_metadata(study, name),
    )
    def windows(
        context: dg.AssetExecutionContext, config: TableSettings, study_lock: StudyLockResource
    ) -> Iterator[dg.AssetMaterialization | dg.AssetCheckResult]:
        with stage(context, study, study_lock):
            record_tables = study_files.study_tables(study)
            if name == PostsUsedInFeeds.name:
                said = derivation.read_feeds(study)
                context.log.info(f"the table of feeds: {', '.join(f'{k} {n:,}' for k, n in said.items())}")
            wanted = list(context.partition_keys)
            reports = derivation.build_derived(study, record_tables, name, wanted, again=config.again)
            rebuilt = [report for report in reports if report.rebuilt]
            inspection = derivation.inspect(study, record_tables, name, [one.partition for one in rebuilt])
            notes = derivation.notes(study, record_tables, name)
            count(
                context,
                name,
                windows=len(reports),
                windows_built=len(rebuilt),
                rows=sum(one.rows for one in reports),
            )
        context.log.info(
            f"{name}: {sum(report.rows for report in reports):,} rows in {len(reports)} {granularity.word}s, "
            f"{len(rebuilt)} of which have changed"
        )
        for report in rebuilt if config.only_stale else reports:
            folder = study.location / "derived" / name / granularity.folder(report.partition)
            yield dg.AssetMaterialization(
                asset_key=context.asset_key,
                partition=report.partition,
                metadata=derived_metadata(report, folder, notes),
            )
        yield from derived_check_results(
            context.asset_key, inspection, reconciles=derivation.reconciles(name)
        )

    return windows


def _engaged(study: Study, tables: list[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    descriptions = {
        ENGAGED_ACCOUNTS_KEY: "Accounts that the study does not collect and that its accounts replied to, quoted, "
        "liked, reposted or followed in the period of its `discovery`, with how often and by how many: a source of "
        "DIDs for another backfill (`source: {type: asset, backfill: ..., asset: engaged_accounts}`).",
        ENGAGED_POSTS_KEY: "Posts that the study's accounts replied to, quoted, liked or reposted in that period: a "
        "list of records for another backfill's filters.",
    }
    names = {key: key.removesuffix(".parquet") for key in descriptions}

    @dg.multi_asset(
        name=f"{study.name}__engaged",
        specs=[
            dg.AssetSpec(
                asset_key(study, names[key]),
                deps=[dg.AssetDep(table, partition_mapping=dg.AllPartitionMapping()) for table in tables],
                description=description,
                group_name=study.name,
                kinds={"parquet", "polars"},
                metadata=column_metadata(study, names[key]),
            )
            for key, description in descriptions.items()
        ],
    )
    def engaged(
        context: dg.AssetExecutionContext,
        config: BuildSettings,
        study_lock: StudyLockResource,
    ) -> Iterator[dg.MaterializeResult[None]]:
        with stage(context, study, study_lock):
            own = study_files.source_dids(study)
            record_tables = study_files.study_tables(study)
            found = derivation.discover_engaged(study, record_tables, own, again=config.again)
        for key, rows in ((ENGAGED_ACCOUNTS_KEY, found.accounts), (ENGAGED_POSTS_KEY, found.posts)):
            yield dg.MaterializeResult(
                asset_key=asset_key(study, names[key]),
                metadata=engaged_metadata(rows, found.unusable, study.location / key),
            )

    return engaged
