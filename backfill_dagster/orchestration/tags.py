"""The tags that tell runs apart: whose they are, who launched them, which partitions they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backfill_dagster.config.run_tags import RunKind
    from backfill_dagster.config.study import Study

# The study that a run belongs to.
STUDY_TAG = "backfill_dagster/study"
# The run whose child a run is, one stage of a whole job.
PARENT_TAG = "backfill_dagster/parent_run"
# Who started a run through the API: `api:<name of the token>`, or `lambda:<name of the function>`.
STARTED_BY_TAG = "backfill_dagster/started_by"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def run_tags(study: Study, kind: RunKind) -> dict[str, Any]:
    """Return the tags of a job's runs: whose they are, and what the study asks for them."""
    return {**study.run_tags.get("all", {}), **study.run_tags.get(kind, {}), STUDY_TAG: study.name}
