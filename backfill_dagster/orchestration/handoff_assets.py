"""The assets that stand for consumers outside: what of the tables each of them was handed."""

from typing import Any

import dagster as dg

from backfill_dagster import handing_over
from backfill_dagster.config.study import Study
from backfill_dagster.handoff.hand_over import HandoffReport
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.stage import asset_key, stage
from backfill_dagster.orchestration.watched_run import count

_KINDS = {"parquet": {"parquet"}, "sqlite": {"sqlite"}}
_HOW = {"parquet": "as Parquet batches in a folder", "sqlite": "as rows of a queue in an SQLite file"}


def handoff_name(consumer: str) -> str:
    """Return the name of a consumer's asset."""
    return f"handoff_{consumer}"


def handoff_assets(
    study: Study, tables: list[dg.AssetsDefinition], undated: dg.AssetsDefinition
) -> list[dg.AssetsDefinition]:
    """Return an asset for each consumer that the study hands records to."""
    return [_handoff(study, name, tables, undated) for name in handing_over.consumers(study)]


def _handoff(
    study: Study, consumer: str, tables: list[dg.AssetsDefinition], undated: dg.AssetsDefinition
) -> dg.AssetsDefinition:
    settings = study.integrations.consumers[consumer]
    taken = [table for table in tables if table.key.path[-1] in settings.tables]

    @dg.asset(
        key=asset_key(study, handoff_name(consumer)),
        group_name=study.name,
        kinds=_KINDS[settings.type],
        deps=[*(dg.AssetDep(table, partition_mapping=dg.AllPartitionMapping()) for table in taken), undated],
        description=f"Records of {', '.join(settings.tables)} handed to the consumer `{consumer}`, "
        f"{_HOW[settings.type]}: each record once, whatever becomes of what the consumer takes away.",
    )
    def handoff(
        context: dg.AssetExecutionContext, study_lock: StudyLockResource
    ) -> dg.MaterializeResult[None]:
        with stage(context, study, study_lock):
            report = handing_over.hand_over(study, consumer)
            count(
                context,
                handoff_name(consumer),
                exported=sum(report.exported.values()),
                batches=report.batches,
            )
        return dg.MaterializeResult(metadata=_metadata(report))

    return handoff


def _metadata(report: HandoffReport) -> dict[str, Any]:
    return {
        "offered": sum(report.offered.values()),
        "exported": sum(report.exported.values()),
        "already_exported": sum(report.already_exported.values()),
        "batches": report.batches,
        "batches_owed_by_an_earlier_run": report.settled,
        **{f"exported_{table}": number for table, number in report.exported.items()},
    }
