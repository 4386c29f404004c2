"""The tags that tell runs apart: whose they are, who launched them, which partitions they are for."""

from __future__ import annotations

# The study that a run belongs to.
STUDY_TAG = "backfill_dagster/study"
# The run whose child a run is, one stage of a whole job.
PARENT_TAG = "backfill_dagster/parent_run"
# Who started a run through the API: `api:<name of the token>`, or `lambda:<name of the function>`.
STARTED_BY_TAG = "backfill_dagster/started_by"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
