"""What was found again of what was shared, as an asset of a study that is rebuilt from it."""

from typing import Any

import dagster as dg

from backfill_dagster.config.study import Study
from backfill_dagster.orchestration.columns import column_metadata
from backfill_dagster.orchestration.metadata import counts_table, file_path
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.stage import asset_key, stage
from backfill_dagster.orchestration.watched_run import count
from backfill_dagster.sharing.rehydration import REHYDRATION_KEY, Rehydration, build_rehydration, is_rebuilt

REHYDRATION = "rehydration"
_CHECK = "every_shared_record_has_one_outcome"


def rehydration_assets(study: Study, accounts: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """Return the asset, if the study is rebuilt from shared ids; downstream of its accounts."""
    if not is_rebuilt(study):
        return []
    key = asset_key(study, REHYDRATION)

    @dg.asset(
        key=key,
        group_name=study.name,
        kinds={"parquet", "polars"},
        deps=[accounts],
        check_specs=[
            dg.AssetCheckSpec(
                _CHECK,
                asset=key,
                blocking=True,
                description="As many records have an outcome as were shared, and those that are said to be in the "
                "tables are all that the tables have.",
            )
        ],
        description="What became of every record that was shared: found, edited, deleted, or of an account that is "
        "gone or could not be read.",
        metadata=column_metadata(study, REHYDRATION),
    )
    def rehydration(context: dg.AssetExecutionContext, study_lock: StudyLockResource) -> dg.MaterializeResult:  # type: ignore[type-arg]  # Dagster knows it only bare
        with stage(context, study, study_lock):
            made = build_rehydration(study)
            assert made is not None  # noqa: S101  there is no such asset else
            count(context, REHYDRATION, **made.by_outcome)
        return dg.MaterializeResult(metadata=_metadata(study, made), check_results=[_check(made)])

    return [rehydration]


def _metadata(study: Study, made: Rehydration) -> dict[str, Any]:
    by_table = made.counts.pivot("outcome", index="table", values="records").fill_null(0).sort("table")
    return {
        "dagster/row_count": made.shared - made.purged,
        "shared": made.shared,
        "purged": made.purged,
        **made.by_outcome,
        "records_by_table": counts_table(by_table),
        "path": file_path(study.location / REHYDRATION_KEY),
    }


def _check(made: Rehydration) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=_CHECK,
        passed=not made.problems,
        metadata={
            "offences": len(made.problems),
            "problems": list(made.problems),
            "what_to_do": "Run the study's rebuild job; if it still fails, a stored file was changed, or this is a "
            "defect.",
        },
    )
