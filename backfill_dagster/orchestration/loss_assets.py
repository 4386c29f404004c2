"""What is not in the tables, as assets: what was lost on the way, what went since, and what became of accounts."""

from typing import Any

import dagster as dg
import polars as pl

from backfill_dagster.attrition.build import FIGURE_KEY, METHODS_KEY, Attrition, build_attrition
from backfill_dagster.attrition.steps import ATTRITION_KEY, Breakdown, Unit, totals
from backfill_dagster.config.study import Study
from backfill_dagster.orchestration.columns import column_metadata
from backfill_dagster.orchestration.loss_checks import (
    account_history_check_results,
    account_history_checks,
    attrition_check_results,
    attrition_checks,
    record_changes_check_results,
    record_changes_checks,
)
from backfill_dagster.orchestration.metadata import counts_table, file_path
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.stage import asset_key, stage
from backfill_dagster.orchestration.watched_run import count
from backfill_dagster.survivorship.account_history import Aspect
from backfill_dagster.survivorship.build import build_account_history, build_record_changes
from backfill_dagster.survivorship.stored import (
    ACCOUNT_HISTORY_KEY,
    DELETION_RATES_KEY,
    RECORD_CHANGES_FOLDER,
)


def loss_assets(
    study: Study,
    directory: dg.AssetsDefinition,
    repos: dg.AssetsDefinition,
    accounts: dg.AssetsDefinition,
) -> list[dg.AssetsDefinition]:
    """Return the assets of what a study has lost, upstream first."""
    stored = dg.AssetDep(repos, partition_mapping=dg.AllPartitionMapping())
    changes = _record_changes(study, stored)
    return [changes, _account_history(study, stored, directory), _attrition(study, accounts, changes)]


def _record_changes(study: Study, repos: dg.AssetDep) -> dg.AssetsDefinition:
    key = asset_key(study, "record_changes")

    @dg.asset(
        key=key,
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[repos],
        check_specs=record_changes_checks(key),
        description="What appeared, changed and went between two collections of an account: keys, CIDs and times, "
        "never content. Of it, deletion_rates.parquet says how fast records and accounts go.",
        metadata=column_metadata(study, "record_changes"),
    )
    def record_changes(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows it only bare
        with stage(context, study, study_lock):
            made = build_record_changes(study)
            count(context, "record_changes", rows=made.rows, snapshots_compared=made.compared)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": made.rows,
                "snapshots_compared": made.compared,
                "records_by_ending": counts_table(_of_own_types(study, made.by_ending)),
                "rates": file_path(study.location / DELETION_RATES_KEY),
                "path": file_path(study.location / RECORD_CHANGES_FOLDER),
            },
            check_results=list(record_changes_check_results(made)),
        )

    return record_changes


def _account_history(study: Study, repos: dg.AssetDep, directory: dg.AssetsDefinition) -> dg.AssetsDefinition:
    key = asset_key(study, "account_history")

    @dg.asset(
        key=key,
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[repos, directory],
        check_specs=account_history_checks(key),
        description="The state, host and handle of each account over time, as they were seen: from when to when.",
        metadata=column_metadata(study, "account_history"),
    )
    def account_history(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows it only bare
        with stage(context, study, study_lock):
            made = build_account_history(study)
            ended = {
                aspect.value: int(made.ended.filter(aspect=aspect.value)["ended"].sum()) for aspect in Aspect
            }
            count(
                context,
                "account_history",
                rows=made.rows,
                **{f"{k}_changes": n for k, n in ended.items()},
            )
        states = made.ended.filter(aspect=Aspect.STATE.value).drop("aspect")
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": made.rows,
                "state_changes": ended[Aspect.STATE.value],
                "migrations": ended[Aspect.HOST.value],
                "handle_changes": ended[Aspect.HANDLE.value],
                "states_that_ended": counts_table(states),
                "path": file_path(study.location / ACCOUNT_HISTORY_KEY),
            },
            check_results=list(account_history_check_results(made)),
        )

    return account_history


def _of_own_types(study: Study, by_ending: pl.DataFrame) -> pl.DataFrame:
    """Sum up the collections that the study does not name: whoever made one can have named it after somebody."""
    own = [*study.record_types, *study.other_record_types]
    named = pl.when(pl.col("collection").is_in(own)).then("collection").otherwise(pl.lit("others"))
    kinds = ["collection", "ended"]
    return by_ending.with_columns(collection=named).group_by(kinds).agg(pl.col("records").sum()).sort(kinds)


def _attrition(
    study: Study, accounts: dg.AssetsDefinition, changes: dg.AssetsDefinition
) -> dg.AssetsDefinition:
    key = asset_key(study, "attrition")

    @dg.asset(
        key=key,
        group_name=study.name,
        kinds={"parquet", "matplotlib"},
        deps=[accounts, changes],
        check_specs=attrition_checks(key),
        description="What was lost on the way from the source to the tables: at which step, why, on which hosts, and "
        "of how active and how old accounts. With a paragraph for a paper, in methods.md, that names no account.",
        metadata=column_metadata(study, "attrition"),
    )
    def attrition(context: dg.AssetExecutionContext, study_lock: StudyLockResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows it only bare
        with stage(context, study, study_lock):
            made = build_attrition(study)
        return dg.MaterializeResult(
            metadata=_attrition_metadata(study, made), check_results=list(attrition_check_results(made))
        )

    return attrition


def _attrition_metadata(study: Study, made: Attrition) -> dict[str, Any]:
    steps = {
        f"{unit.value}_{step.value}": left
        for unit in Unit
        for step, (_, _, left, _) in totals(made.table, unit).items()
    }
    by_step = made.table.filter(by=Breakdown.ALL.value).select("unit", "step", "entered", "lost", "left")
    return {
        "dagster/row_count": made.table.height,
        **steps,
        "methods": dg.MetadataValue.md(made.methods),
        "losses_by_step": counts_table(by_step),
        "figure": file_path(study.location / FIGURE_KEY),
        "methods_path": file_path(study.location / METHODS_KEY),
        "path": file_path(study.location / ATTRITION_KEY),
    }
