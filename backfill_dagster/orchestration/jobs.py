"""The jobs of one study: its stages as asset jobs, and the one command that runs them all.

The hosts are known only after `directory`, so no single asset run can cover a study. The one command is a job of
four ops; each op executes a stage's own asset job as a child run in the same process, on the same instance, over
one range of partitions. Runs, partitions, checks and metadata then look as if the UI had launched each stage.
"""

from typing import TYPE_CHECKING

import dagster as dg

from backfill_dagster import pipeline
from backfill_dagster.config import Study
from backfill_dagster.errors import ConfigError
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.partitions import (
    covering_range,
    month_partitions,
    pds_partitions_name,
    register_hosts,
)
from backfill_dagster.orchestration.resources import ExclusiveResource
from backfill_dagster.orchestration.summary import study_summary
from backfill_dagster.repos.packs import stored_hosts
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

STUDY_TAG = "backfill_dagster/study"
PARENT_TAG = "backfill_dagster/parent_run"
_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"
_ALIVE = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def stage_jobs(study: Study, assets: list[dg.AssetsDefinition]) -> "list[UnresolvedAssetJobDefinition]":
    """Return the asset job of each stage; every one also runs by itself, from the UI or the command line."""
    by_name = {asset.key.path[-1]: asset for asset in assets}
    stages = {
        "discover": ["source_dids", "directory"],
        "fetch": ["repos"],
        "convert": ["records"],
        "tables": pipeline.study_tables(study),
        "accounts": ["undated", "accounts"],
    }
    return [
        dg.define_asset_job(
            _stage_job(study, stage),
            selection=[by_name[name] for name in names],
            config=console_config(study),
            tags={STUDY_TAG: study.name},
            description=f"{_STAGE_DESCRIPTIONS[stage]} Called by `{study.name}`; runs by itself too.",
        )
        for stage, names in stages.items()
    ]


_STAGE_DESCRIPTIONS = {
    "discover": "Reads the source and resolves the directory.",
    "fetch": "Fetches the repositories of a range of hosts.",
    "convert": "Turns the stored repositories of a range of hosts into records.",
    "tables": "Builds a range of months of every table.",
    "accounts": "Builds the undated rows and the table of accounts, and checks the sums.",
}


def study_job(study: Study) -> dg.JobDefinition:
    """Return the job that runs the whole study, or only rebuilds it if the YAML says `skip_backfill`."""

    @dg.op(name=f"{study.name}__begin", out=dg.Out(dg.Nothing))
    def begin(context: dg.OpExecutionContext, exclusive: ExclusiveResource) -> None:
        _begin(context, study, exclusive)

    @dg.op(name=f"{study.name}__discover_hosts", ins=_AFTER, out=dg.Out(dg.Nothing))
    def discover_hosts(context: dg.OpExecutionContext) -> None:
        _run_stage(context, study, "discover")

    @dg.op(name=f"{study.name}__fetch_hosts", ins=_AFTER, out=dg.Out(list[str]))
    def fetch_hosts(context: dg.OpExecutionContext) -> list[str]:
        return _fetch_hosts(context, study)

    @dg.op(name=f"{study.name}__build", ins=_AFTER, out=dg.Out(dg.Nothing))
    def build(context: dg.OpExecutionContext) -> None:
        _build(context, study)

    @dg.op(name=f"{study.name}__report", ins={**_AFTER, "failed_hosts": dg.In(list[str])})
    def report(context: dg.OpExecutionContext, failed_hosts: list[str]) -> None:
        _report(context, study, failed_hosts)

    @dg.job(
        name=study.name,
        description=study.description
        or f"Runs the whole study `{study.name}`: source, directory, fetch, records, tables, accounts.",
        config=console_config(study),
        tags={STUDY_TAG: study.name},
    )
    def whole_study() -> None:
        fetched = fetch_hosts(after=discover_hosts(after=begin()))
        report(after=build(after=fetched), failed_hosts=fetched)

    return _rebuild(study, study.name) if study.processing.skip_backfill else whole_study


def rebuild_job(study: Study) -> dg.JobDefinition:
    """Return the job that fetches nothing and rebuilds records and tables from what is stored."""
    return _rebuild(study, f"{study.name}_rebuild")


def broken_job(name: str, error: ConfigError) -> dg.JobDefinition:
    """Return the job of a YAML that does not validate: it fails at once and says why."""

    @dg.op(name=f"{name}__config")
    def config() -> None:
        raise dg.Failure(description=str(error), allow_retries=False)

    @dg.job(name=name, description=str(error), config=console_config(None))
    def broken() -> None:
        config()

    return broken


_AFTER = {"after": dg.In(dg.Nothing)}


def _rebuild(study: Study, name: str) -> dg.JobDefinition:
    @dg.op(name=f"{name}__begin", out=dg.Out(dg.Nothing))
    def begin(context: dg.OpExecutionContext, exclusive: ExclusiveResource) -> None:
        _begin(context, study, exclusive)

    @dg.op(name=f"{name}__build", ins=_AFTER, out=dg.Out(dg.Nothing))
    def build(context: dg.OpExecutionContext) -> None:
        _build(context, study)

    @dg.op(name=f"{name}__report", ins=_AFTER)
    def report(context: dg.OpExecutionContext) -> None:
        _report(context, study, [])

    @dg.job(
        name=name,
        description=f"Rebuilds the records and tables of `{study.name}` from what is stored; fetches nothing.",
        config=console_config(study),
        tags={STUDY_TAG: study.name},
    )
    def rebuild() -> None:
        report(after=build(after=begin()))

    return rebuild


def _begin(context: dg.OpExecutionContext, study: Study, exclusive: ExclusiveResource) -> None:
    exclusive.take(study, context.run_id)
    StudyStorage(study.root).sweep_scratch()
    _close_dead_runs(context, study)


def _close_dead_runs(context: dg.OpExecutionContext, study: Study) -> None:
    """Report the study's runs failed whose process is gone: whoever holds the study knows that they are dead."""
    jobs = (study.name, f"{study.name}_rebuild")
    filters = dg.RunsFilter(statuses=_ALIVE, tags={STUDY_TAG: study.name})
    alive = {run.run_id: run for run in context.instance.get_runs(filters) if run.run_id != context.run_id}
    dead = {run_id for run_id, run in alive.items() if run.job_name in jobs}
    for run_id, run in alive.items():
        if run_id in dead or run.tags.get(PARENT_TAG) in dead:
            context.instance.report_run_failed(run, "The process that did this run is gone.")
            context.log.warning(f"run {run_id} was left unfinished by a process that is gone")


def _fetch_hosts(context: dg.OpExecutionContext, study: Study) -> list[str]:
    hosts = context.instance.get_dynamic_partitions(pds_partitions_name(study))
    span = covering_range(list(hosts), pipeline.hosts_to_fetch(study))
    if span is None:
        context.log.info("every account is settled: nothing to fetch")
        return []
    try:
        _run_stage(context, study, "fetch", span)
    except dg.Failure as failure:
        failed = failure.metadata.get("hosts")
        if failed is None:
            raise
        context.log.warning(str(failure.description))
        return [str(host) for host in failed.value]  # type: ignore[union-attr]
    return []


def _build(context: dg.OpExecutionContext, study: Study) -> None:
    register_hosts(context.instance, study, stored_hosts(StudyStorage(study.root)))
    hosts = list(context.instance.get_dynamic_partitions(pds_partitions_name(study)))
    span = covering_range(hosts, pipeline.hosts_to_convert(study))
    if span is not None:
        _run_stage(context, study, "convert", span)
    months = month_partitions(study.time_range).get_partition_keys()
    _run_stage(context, study, "tables", (months[0], months[-1]))
    _run_stage(context, study, "accounts")


def _run_stage(
    context: dg.OpExecutionContext, study: Study, stage: str, span: tuple[str, str] | None = None
) -> None:
    """Execute a stage's asset job as a child run; what it raises, this raises."""
    context.log.info(_STAGE_DESCRIPTIONS[stage])
    partitions = {_RANGE_START: span[0], _RANGE_END: span[1]} if span else {}
    assert context.repository_def is not None  # noqa: S101  a job of a code location always has one
    context.repository_def.get_job(_stage_job(study, stage)).execute_in_process(
        instance=context.instance,
        run_config=console_config(study),
        tags={
            **partitions,
            PARENT_TAG: context.run_id,
            # A child cannot be launched again by itself: the next run of the study picks up where it ended.
            "dagster/max_retries": "0",
        },
    )


def _report(context: dg.OpExecutionContext, study: Study, failed_hosts: list[str]) -> None:
    context.log.info(study_summary(study))
    if failed_hosts:
        raise dg.Failure(
            description=f"{len(failed_hosts)} hosts could not be read whole: {', '.join(failed_hosts[:20])}. "
            f"All others are in the tables. Run `{study.name}` again to fetch only what is missing.",
            allow_retries=False,
        )


def _stage_job(study: Study, stage: str) -> str:
    return f"{study.name}_stage_{stage}"
