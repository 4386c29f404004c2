"""The assets of a study's metadata: its collected accounts and its runs, as tables and in its metadata store."""

from typing import Any

import dagster as dg

from backfill_dagster.config.study import Study
from backfill_dagster.metadata_stores import of_study
from backfill_dagster.metadata_stores.of_study import Written
from backfill_dagster.metadata_stores.tables import RUN_METADATA_KEY, USER_METADATA_KEY
from backfill_dagster.orchestration.columns import column_metadata
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.metadata import file_path
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.stage import asset_key, stage


def metadata_assets(study: Study, accounts: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """Return both assets."""
    return [_user_metadata(study, accounts), _run_metadata(study)]


def _user_metadata(study: Study, accounts: dg.AssetsDefinition) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "user_metadata"),
        group_name=study.name,
        kinds=_kinds(study),
        deps=[accounts],
        metadata=column_metadata(study, "user_metadata"),
        description="The accounts that are collected, with how many records of which kinds: as a table, and as one "
        f"item for each in the study's metadata store ({study.metadata_store.type}), which another study's `source` or "
        "`exclude` of type `collected` reads.",
    )
    def user_metadata(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with stage(context, study, study_lock):
            written = of_study.write_user_metadata(study)
        return dg.MaterializeResult(metadata=_metadata(study, written, USER_METADATA_KEY))

    return user_metadata


def _run_metadata(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "run_metadata"),
        group_name=study.name,
        kinds=_kinds(study),
        deps=[asset_key(study, "audit_log")],
        metadata=column_metadata(study, "run_metadata"),
        description="The runs of the study as the previous system told of them, made of the audit log: as a table, and "
        f"as one item for each in the study's metadata store ({study.metadata_store.type}). Every run writes its own "
        "at its end; materialized by itself, it writes what is missing. Names no account.",
    )
    def run_metadata() -> dg.MaterializeResult[None]:
        with clear_failures():
            written = of_study.write_run_metadata(study)
        return dg.MaterializeResult(metadata=_metadata(study, written, RUN_METADATA_KEY))

    return run_metadata


def _kinds(study: Study) -> set[str]:
    return {"parquet", study.metadata_store.type}


def _metadata(study: Study, written: Written, key: str) -> dict[str, Any]:
    return {
        "dagster/row_count": written.rows,
        "items_written": written.put,
        "items_removed": written.removed,
        **({"store_failed": written.failure} if written.failure else {}),
        "path": file_path(study.location / key),
    }
