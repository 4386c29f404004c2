"""What the assets of a study have in common: their keys, how a range of partitions runs, and how a stage is done."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dagster as dg

from backfill_dagster.dids.sources.lineage import upstream_assets
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.measuring import measured_stage
from backfill_dagster.orchestration.watched_run import watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.study import Study
    from backfill_dagster.monitoring.study_metrics import StudyMetrics
    from backfill_dagster.orchestration.resources import StudyLockResource

SINGLE_RUN = dg.BackfillPolicy.single_run()
# These assets hand on nothing but what they stored; Dagster's stubs do not count Nothing among its types.
NO_OUTPUT: Any = dg.Nothing
# Assets without partitions.
_WHOLE = frozenset(
    {
        *("source_dids", "directory", "undated", "accounts", "engaged_accounts", "engaged_posts"),
        *("record_changes", "account_history", "attrition", "rehydration"),
    }
)


def asset_key(study: Study, name: str) -> dg.AssetKey:
    """Return the key of one of a study's assets."""
    return dg.AssetKey([study.name, name])


def other_backfills(study: Study, parts: tuple[str, ...]) -> list[dg.AssetDep]:
    """Return the dependences on other backfills' assets that these parts of the study's YAML name."""
    return [
        dg.AssetDep(
            dg.AssetKey([backfill, asset]),
            partition_mapping=None if asset in _WHOLE else dg.AllPartitionMapping(),
        )
        for backfill, asset in upstream_assets(study, parts)
    ]


@contextmanager
def stage(
    context: dg.AssetExecutionContext, study: Study, study_lock: StudyLockResource
) -> Iterator[StudyMetrics]:
    """Do a stage's work: while no purge and no other whole run of the study does, and with clear failures.

    Gives what the work is measured with.
    """
    with clear_failures():
        watched = watch(study, context.run, context.instance, study_lock)
        study_lock.share(study, context.run)
        name = context.op_execution_context.op.name.removeprefix(f"{study.name}__")
        with watched.stage(name), measured_stage(study, name) as metrics:
            yield metrics
