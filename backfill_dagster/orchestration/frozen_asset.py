"""Frozen builds as an asset of a study that asks for one: what is stored, under a label, as it stays."""

from typing import Any

import dagster as dg
import polars as pl

from backfill_dagster.config.study import Study
from backfill_dagster.frozen.freeze import Frozen, freeze, list_frozen
from backfill_dagster.frozen.places import frozen_folder
from backfill_dagster.orchestration.metadata import counts_table, file_path
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.stage import asset_key, stage


def frozen_assets(study: Study, manifest: dg.AssetsDefinition) -> list[dg.AssetsDefinition]:
    """Return the asset of a study's frozen build, if it asks for one by `snapshot`.

    It has no condition by which it is made by itself: a build is frozen when somebody has a whole one.
    """
    if study.snapshot is None:
        return []

    @dg.asset(
        key=asset_key(study, "frozen"),
        group_name=study.name,
        kinds={"json", "parquet"},
        deps=[manifest],
        description=f"The tables and all that a reader needs with them, as they were when they were frozen as "
        f"`{study.snapshot}`. Made once: later builds leave it as it is, and only a purge changes it, which its "
        f"manifest says. `{study.name}_verify` holds it against that manifest.",
    )
    def frozen(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with stage(context, study, study_lock):
            made = freeze(study)
            context.log.info(told(made))
        return dg.MaterializeResult(
            metadata=frozen_metadata(study, made), data_version=dg.DataVersion(made.build.told.digest[:16])
        )

    return [frozen]


def told(made: Frozen) -> str:
    """Say in a sentence what is frozen."""
    build = made.build
    said = f"Frozen as {build.label} on {build.frozen_at}, {len(build.tables)} tables"
    if made.is_new:
        return f"{said}."
    since = "the study has moved on since" if made.has_moved_on else "and the study is the same since"
    return f"{said}; {since}. Another label freezes what is there now."


def frozen_metadata(study: Study, made: Frozen) -> dict[str, Any]:
    """Say what is frozen, in numbers, and list all that is frozen of the study."""
    build = made.build
    builds = pl.DataFrame(
        [
            {
                "label": one.label,
                "frozen at": one.frozen_at,
                "tables": len(one.tables),
                "files": one.files.height,
                "megabytes": round(int(one.files["bytes"].sum()) / 1e6, 3),
                "purges": len(one.purges),
            }
            for one in list_frozen(study)
        ]
    )
    return {
        "dagster/row_count": build.files.height,
        "label": build.label,
        "frozen_at": build.frozen_at,
        "frozen_now": made.is_new,
        "study_has_moved_on": made.has_moved_on,
        "told": told(made),
        "tables": len(build.tables),
        "megabytes": round(int(build.files["bytes"].sum()) / 1e6, 3),
        "purges": len(build.purges),
        "sha256": build.told.digest,
        "all_frozen_builds": counts_table(builds),
        "path": file_path(study.location / frozen_folder(build.label)),
    }
