"""The manifest as an asset: the last thing that a build of the tables makes, of all that there is by then."""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from backfill_dagster.config.study import Study
from backfill_dagster.manifest.canonical import Told
from backfill_dagster.manifest.keys import MANIFEST_KEY
from backfill_dagster.manifest.written import write_manifest
from backfill_dagster.orchestration.metadata import file_path
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.stage import asset_key, stage
from backfill_dagster.orchestration.tags import PARENT_TAG


def manifest_asset(study: Study, made: Iterable[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    """Return the asset of a study's manifest, downstream of what is `made` of its tables."""
    deps = [
        dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping() if asset.partitions_def else None)
        for asset in made
        for key in asset.keys
    ]

    @dg.asset(
        key=asset_key(study, "manifest"),
        group_name=study.name,
        kinds={"json", "parquet"},
        deps=deps,
        automation_condition=dg.AutomationCondition.eager(),
        description="What the study's folder holds: every file with its rows, size and SHA-256, each account's commit, "
        "revision and signing key, the settings and the code's version, and what went into each stage and came out. "
        f"`{study.name}_verify` holds the folder against it.",
    )
    def manifest(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with stage(context, study, study_lock):
            runs = {context.run.run_id, context.run.tags.get(PARENT_TAG, context.run.run_id)}
            written = write_manifest(study, sorted(runs))
        return dg.MaterializeResult(
            metadata=_metadata(study, written), data_version=dg.DataVersion(written.digest[:16])
        )

    return manifest


def _metadata(study: Study, written: Told) -> dict[str, Any]:
    totals, snapshots = (written.content[name] for name in ("totals", "accounts"))
    return {
        "dagster/row_count": totals["files"],
        "files": totals["files"],
        "megabytes": round(totals["bytes"] / 1e6, 3),
        "snapshots": snapshots["rows"],
        "sha256": written.digest,
        "path": file_path(study.location / MANIFEST_KEY),
    }
