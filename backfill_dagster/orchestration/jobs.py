"""The jobs of one study: its stages as asset jobs, and the one command that runs them all.

The hosts are known only after `directory`, so no single asset run can cover a study. The one command is a job of
a few ops; each op executes a stage's own asset job as a child run in the same process, on the same instance, over
one range of partitions. Runs, partitions, checks and metadata then look as if the UI had launched each stage.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg
from pydantic import ValidationError

from backfill_dagster import accounting, derivation, handing_over, pending, pipeline, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError
from backfill_dagster.filtering import read_filter_lists
from backfill_dagster.frozen.freeze import is_frozen
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.handoff_assets import handoff_name
from backfill_dagster.orchestration.history import belongs_to
from backfill_dagster.orchestration.partitions import (
    covering_range,
    pds_partitions_name,
    register_hosts,
    time_partitions,
)
from backfill_dagster.orchestration.purge_job import finish_purge, purge_expired, purge_job
from backfill_dagster.orchestration.rehydration_asset import REHYDRATION
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.run_settings import (
    FetchSettings,
    directory_settings_class,
    fetch_settings_class,
)
from backfill_dagster.orchestration.share_job import share_job
from backfill_dagster.orchestration.summary import study_summary
from backfill_dagster.orchestration.tags import PARENT_TAG, RANGE_END, RANGE_START, run_tags
from backfill_dagster.orchestration.verify_job import verify_job
from backfill_dagster.orchestration.watched_run import watch
from backfill_dagster.repos.packs import stored_hosts
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sharing.rehydration import is_rebuilt
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from backfill_dagster.config.run_tags import RunKind

# A run that is started takes the study's lock, or is refused it, within so many seconds.
_STARTING_SECONDS = 60
_ALIVE = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


# What an op of a study's job takes and hands on: the hosts that could not be read whole so far.
_MakeOp: TypeAlias = Callable[[Study, str], dg.OpDefinition]
_AFTER = {"failed_hosts": dg.In(list[str])}


def stage_jobs(study: Study, assets: list[dg.AssetsDefinition]) -> "dict[str, UnresolvedAssetJobDefinition]":
    """Return the asset job of each stage; every one also runs by itself, from the UI or the command line."""
    by_name = {key.path[-1]: asset for asset in assets for key in asset.keys}
    stages: dict[RunKind, list[str]] = {
        "discover": ["source_dids", "directory"],
        "fetch": ["repos"],
        "convert": ["records"],
        "tables": study_files.study_tables(study),
        "derive": derivation.derived_names(study),
        "engaged": ["engaged_accounts"] if study.discovery is not None else [],
        "accounts": [
            *(
                "undated",
                "accounts",
                "record_changes",
                "account_history",
                "attrition",
                *([REHYDRATION] if is_rebuilt(study) else []),
                "report",
                "user_metadata",
            ),
            "manifest",
        ],
        "handoff": [handoff_name(consumer) for consumer in handing_over.consumers(study)],
        "manifest": ["manifest"],
        "freeze": ["frozen"] if study.snapshot is not None else [],
    }
    return {
        stage: dg.define_asset_job(
            _stage_job(study, stage),
            selection=[by_name[name] for name in names],
            config=console_config(study),
            tags=run_tags(study, stage),
            description=f"{_STAGE_DESCRIPTIONS[stage]} Called by `{study.name}`; runs by itself too.",
        )
        for stage, names in stages.items()
        if names
    }


_STAGE_DESCRIPTIONS = {
    "discover": "Reads the source and resolves the directory.",
    "fetch": "Fetches the repositories of a range of hosts.",
    "convert": "Turns the stored repositories of a range of hosts into records.",
    "tables": "Builds a range of time windows of every table.",
    "derive": "Builds a range of time windows of every derived table.",
    "engaged": "Lists whom and what the study's accounts engaged with.",
    "accounts": "Builds the undated rows, the table of accounts and the report, and checks the sums.",
    "handoff": "Hands records to the consumers that the study names.",
    "manifest": "Lists every file with its digest, and what it was made of.",
    "freeze": "Freezes what is stored under the study's label, unless it is frozen already.",
}


def study_jobs(study: Study) -> list[dg.JobDefinition]:
    """Return the jobs that do a study's work from end to end."""
    name = study.name
    rebuild: tuple[str, list[_MakeOp]] = (
        f"Rebuilds the records and tables of `{name}` from what is stored; fetches nothing.",
        [_begin_op, partial(_build_op, again=True)],
    )
    whole: tuple[str, list[_MakeOp]] = (
        " ".join(
            [
                *([study.description] if study.description else []),
                f"Runs the whole study `{name}`: source, directory, fetch, records, tables, accounts, report.",
            ]
        ),
        [_begin_op, _discover_op, partial(_fetch_op, mode=FetchMode.UNSETTLED), _build_op],
    )
    retry: tuple[str, list[_MakeOp]] = (
        f"Fetches the accounts of `{name}` whose latest attempt failed, and no others, and rebuilds the tables.",
        [_begin_op, partial(_fetch_op, mode=FetchMode.FAILED), _build_op],
    )
    refresh: tuple[str, list[_MakeOp]] = (
        f"Brings `{name}` up to date: asks every account's current revision, and fetches what has moved on.",
        [_begin_op, _discover_op, partial(_fetch_op, mode=FetchMode.REFRESH), _build_op],
    )
    return [
        _sequence(study, name, *(rebuild if study.processing.skip_backfill else whole)),
        _sequence(study, f"{name}_rebuild", *rebuild),
        _sequence(study, f"{name}_retry_failed", *retry),
        _sequence(study, f"{name}_refresh", *refresh),
        purge_job(study, _begin, partial(_build, again=False)),
        verify_job(study, _begin),
        share_job(study, _begin, partial(_build, again=False)),
    ]


def broken_job(name: str, error: ConfigError) -> dg.JobDefinition:
    """Return the job of a YAML that does not validate: it fails at once and says why."""

    @dg.op(name=f"{name}__config")
    def config() -> None:
        raise dg.Failure(description=str(error), allow_retries=False)

    @dg.job(name=name, description=str(error), config=console_config(None))
    def broken() -> None:
        config()

    return broken


def _sequence(study: Study, name: str, description: str, make_ops: list[_MakeOp]) -> dg.JobDefinition:
    """Return a job whose ops run one after the other and end with the report."""
    freeze_ops = [_freeze_op] if study.snapshot is not None else []
    ops = [make(study, name) for make in [*make_ops, *freeze_ops, _summary_op]]
    config = {**console_config(study), "ops": _default_config(ops)}

    @dg.job(name=name, description=description, config=config, tags=run_tags(study, "whole"))
    def job() -> None:
        failed_hosts = ops[0]()
        for op in ops[1:]:
            failed_hosts = op(failed_hosts)

    return job


def _default_config(ops: list[dg.OpDefinition]) -> dict[str, Any]:
    """Return what the ops are set to, written out: the launchpad of a job then opens with what may be changed."""
    defaults = {
        op.name: op.config_field.default_value
        for op in ops
        if op.config_field and op.config_field.default_provided
    }
    return {
        name: {"config": {field: value for field, value in values.items() if value is not None}}
        for name, values in defaults.items()
        if isinstance(values, dict) and values
    }


def _begin_op(study: Study, job: str) -> dg.OpDefinition:
    @dg.op(name=f"{job}__begin", description="Takes the study for this run alone.")
    def begin(context: dg.OpExecutionContext, study_lock: StudyLockResource) -> list[str]:
        with clear_failures():
            watch(study, context.run, context.instance, study_lock)
            # What a later op would refuse is refused before the stages between have asked anybody.
            _fetch_settings(context, study, job).check(study.processing)
            _begin(context, study, study_lock)
            finish_purge(context, study, partial(_build, again=False))
        return []

    return begin


def _discover_op(study: Study, job: str) -> dg.OpDefinition:
    settings_class: Any = directory_settings_class(study)

    @dg.op(name=f"{job}__discover_hosts", ins=_AFTER, description=_STAGE_DESCRIPTIONS["discover"])
    def discover_hosts(
        context: dg.OpExecutionContext, config: settings_class, failed_hosts: list[str]
    ) -> list[str]:
        _run_stage(context, study, "discover", asset_config={"directory": config.model_dump()})
        return failed_hosts

    return discover_hosts


def _fetch_op(study: Study, job: str, *, mode: FetchMode) -> dg.OpDefinition:
    settings_class: Any = fetch_settings_class(study, FetchSettings)

    @dg.op(name=_fetch_op_name(job), ins=_AFTER, description=_STAGE_DESCRIPTIONS["fetch"])
    def fetch_hosts(
        context: dg.OpExecutionContext, config: settings_class, failed_hosts: list[str]
    ) -> list[str]:
        with clear_failures():
            return [*failed_hosts, *_fetch_hosts(context, study, mode, config)]

    return fetch_hosts


def _build_op(study: Study, job: str, *, again: bool = False) -> dg.OpDefinition:
    @dg.op(name=f"{job}__build", ins=_AFTER, description="Makes the records, the tables and the accounts.")
    def build(context: dg.OpExecutionContext, failed_hosts: list[str]) -> list[str]:
        with clear_failures():
            make_tables = partial(_build, again=again)
            if not purge_expired(context, study, make_tables):
                make_tables(context, study)
        return failed_hosts

    return build


def _freeze_op(study: Study, job: str) -> dg.OpDefinition:
    @dg.op(name=f"{job}__freeze", ins=_AFTER, description=_STAGE_DESCRIPTIONS["freeze"])
    def freeze(context: dg.OpExecutionContext, failed_hosts: list[str]) -> list[str]:
        with clear_failures():
            missing = _missing(study, failed_hosts, _fetch_settings(context, study, job))
            if missing and not is_frozen(study):
                # What is frozen stays: the run that fetches the rest could not add to it.
                context.log.warning(
                    f"Not frozen as {study.snapshot}: {'; '.join(missing)}. Run `{study.name}` again, or materialize "
                    "`frozen` to freeze what there is."
                )
            else:
                _run_stage(context, study, "freeze")
        return failed_hosts

    return freeze


def _summary_op(study: Study, job: str) -> dg.OpDefinition:
    @dg.op(name=f"{job}__summary", ins=_AFTER, out=dg.Out(dg.Nothing), description="Says what came of it.")
    def summary(context: dg.OpExecutionContext, failed_hosts: list[str]) -> None:
        with clear_failures():
            _report(context, study, failed_hosts, _fetch_settings(context, study, job))

    return summary


def _begin(context: dg.OpExecutionContext, study: Study, study_lock: StudyLockResource) -> None:
    watch(study, context.run, context.instance, study_lock)
    study_lock.take(study, context.run_id, context.run.parent_run_id)
    storage = StudyStorage(study.location)
    storage.sweep_scratch()
    storage.ensure_headroom()
    _close_dead_runs(context, study)


def _close_dead_runs(context: dg.OpExecutionContext, study: Study) -> None:
    """Report the study's runs failed whose process is gone: whoever has the study alone knows that they are dead.

    But for those that have only just begun, and have yet to find that the study is taken.
    """
    now = time.time()
    for record in context.instance.get_run_records(dg.RunsFilter(statuses=_ALIVE)):
        run = record.dagster_run
        if run.run_id == context.run_id or not belongs_to(run, study):
            continue
        since = record.start_time or record.create_timestamp.timestamp()
        if now - since >= _STARTING_SECONDS or run.job_name in _whole_jobs(study):
            context.instance.report_run_failed(run, "The process that did this run is gone.")
            context.log.warning(f"run {run.run_id} was left unfinished by a process that is gone")


def _whole_jobs(study: Study) -> set[str]:
    return {job.name for job in study_jobs(study)}


def _fetch_op_name(job: str) -> str:
    return f"{job}__fetch_hosts"


def _fetch_settings(context: dg.OpExecutionContext, study: Study, job: str) -> FetchSettings:
    """Return what this run is given for its op that fetches: other ops go by that as well."""
    ops: Any = context.run.run_config.get("ops", {})
    settings_class = fetch_settings_class(study, FetchSettings)
    try:
        return settings_class(**ops.get(_fetch_op_name(job), {}).get("config", {}))
    except ValidationError:  # a value is yet to come from the environment
        return settings_class()


def _fetch_hosts(
    context: dg.OpExecutionContext, study: Study, mode: FetchMode, config: FetchSettings
) -> list[str]:
    wanted = pipeline.hosts_to_fetch(study, mode, only_hosts=config.only_hosts, only_dids=config.accounts)
    register_hosts(context.instance, study, wanted)
    hosts = context.instance.get_dynamic_partitions(pds_partitions_name(study))
    span = covering_range(list(hosts), wanted)
    if span is None:
        context.log.info("Nothing to fetch.")
        return []
    try:
        # Of the hosts that are named, those on which there is nothing to do may lie outside the range.
        hosts = [host for host in config.only_hosts if host in wanted]
        settings = {**config.model_dump(), "only_hosts": hosts, "mode": mode.value}
        _run_stage(context, study, "fetch", span, {"repos": settings})
    except dg.Failure as failure:
        failed = failure.metadata.get("hosts")
        if failed is None:
            raise
        context.log.warning(str(failure.description))
        return [str(host) for host in failed.value]  # type: ignore[union-attr]
    return []


def _build(context: dg.OpExecutionContext, study: Study, *, again: bool) -> None:
    register_hosts(context.instance, study, stored_hosts(StudyStorage(study.location)))
    hosts = list(context.instance.get_dynamic_partitions(pds_partitions_name(study)))
    # With another list in a filter, every host's records are to be converted again.
    read_filter_lists(study)
    span = covering_range(hosts, pipeline.hosts_to_convert(study, again=again))
    if span is not None:
        _run_stage(context, study, "convert", span, {"records": {"again": again}})
    _build_windows(context, study, again=again)
    _run_stage(context, study, "accounts", asset_config={"undated": {"again": again}})
    # After the undated rows, of which it is made too; and last, for what it reads besides may be gone.
    _derive(context, study, again=again)
    if handing_over.pending_consumers(study):
        _run_stage(context, study, "handoff")
    if derivation.derived_names(study) or study.discovery is not None:
        # The stage before has told of what was there by then.
        _run_stage(context, study, "manifest")


def _build_windows(context: dg.OpExecutionContext, study: Study, *, again: bool) -> None:
    """Build the tables' windows that have changed, or all `again`.

    An event for each window of each table costs more than to find that it is up to date: the others are passed over,
    but for those that this instance has never been told of.
    """
    stale = pipeline.stale_windows(study)
    if not _run_on_windows(context, study, "tables", stale, again=again):
        context.log.info("No records have changed; the tables are up to date.")


def _derive(context: dg.OpExecutionContext, study: Study, *, again: bool) -> None:
    """Bring what is made of the tables up to date, in the same way."""
    derivation.remove_other_derived(study)
    if study.discovery is not None and (again or pending.engaged_is_stale(study)):
        _run_stage(context, study, "engaged", asset_config={"engaged": {"again": again}})
    _run_on_windows(context, study, "derive", pending.stale_derived(study), again=again)


def _run_on_windows(
    context: dg.OpExecutionContext, study: Study, stage: str, stale: dict[str, list[str]], *, again: bool
) -> bool:
    """Run a stage on what covers the stale windows of its tables; return whether there were any."""
    windows = list(time_partitions(study.time_range).get_partition_keys())
    told = {
        table: context.instance.get_materialized_partitions(dg.AssetKey([study.name, table]))
        for table in stale
    }
    untold = {table: set(windows) - known for table, known in told.items()}
    changed = {window for keys in stale.values() for window in keys}
    span = covering_range(windows, windows if again and stale else changed.union(*untold.values()))
    if span is None:
        return False
    settings = {table: {"again": again, "only_stale": not (again or keys)} for table, keys in untold.items()}
    _run_stage(context, study, stage, span, settings)
    return True


def _run_stage(
    context: dg.OpExecutionContext,
    study: Study,
    stage: str,
    span: tuple[str, str] | None = None,
    asset_config: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Execute a stage's asset job as a child run; what it raises, this raises."""
    context.log.info(_STAGE_DESCRIPTIONS[stage])
    partitions = {RANGE_START: span[0], RANGE_END: span[1]} if span else {}
    ops = {f"{study.name}__{name}": {"config": config} for name, config in (asset_config or {}).items()}
    assert context.repository_def is not None  # noqa: S101  a job of a code location always has one
    context.repository_def.get_job(_stage_job(study, stage)).execute_in_process(
        instance=context.instance,
        run_config={**console_config(study), "ops": ops},
        tags={
            **partitions,
            PARENT_TAG: context.run_id,
            # A child cannot be launched again by itself: the next run of the study picks up where it ended.
            "dagster/max_retries": "0",
        },
    )


def _report(
    context: dg.OpExecutionContext, study: Study, failed_hosts: list[str], settings: FetchSettings
) -> None:
    context.log.info(study_summary(study))
    missing = _missing(study, failed_hosts, settings)
    if missing:
        raise dg.Failure(
            description=f"{'; '.join(missing)}. All others are in the tables. Run `{study.name}` again to fetch only "
            "what is missing.",
            allow_retries=False,
        )


def _missing(study: Study, failed_hosts: list[str], settings: FetchSettings) -> list[str]:
    """Say in words what another run of the same would still fetch."""
    missing = []
    if failed_hosts:
        number = f"{len(failed_hosts)} host{'s' * (len(failed_hosts) > 1)}"
        missing.append(f"{number} could not be read whole: {', '.join(failed_hosts[:20])}")
    unknown, pending = accounting.unfinished_accounts(study)
    if unknown:
        missing.append(f"{unknown} accounts could not be looked up, because the PLC directory failed")
    if pending and not settings.leaves_some_out(study.processing):
        missing.append(f"{pending} accounts were not attempted")
    return missing


def _stage_job(study: Study, stage: str) -> str:
    return f"{study.name}_stage_{stage}"
