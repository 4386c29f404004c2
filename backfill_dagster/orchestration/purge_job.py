"""Purging as a job: by name, for whoever asks to be taken out, and by age, for accounts that are gone.

Neither the log nor an event says whom it was about. Only the run's own configuration does, if DIDs or URIs are given
in it: in a file they leave no trace, and the job says so.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import dagster as dg
import polars as pl

from backfill_dagster import purging, study_files
from backfill_dagster.config.study import Study
from backfill_dagster.errors import ConfigError, StorageError
from backfill_dagster.frozen.freeze import list_frozen
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.history import forget_purged
from backfill_dagster.orchestration.metadata import stored_records
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.tags import run_tags
from backfill_dagster.orchestration.watched_run import count, watched_run
from backfill_dagster.purge.report import PurgeReport
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.storage import StudyStorage

# What every job of a study begins with, and how its tables are made anew; the study's jobs hand both on.
Begin: TypeAlias = Callable[[dg.OpExecutionContext, Study, StudyLockResource], None]
Rebuild: TypeAlias = Callable[[dg.OpExecutionContext, Study], None]

# Files that are named, one a line, of those that cannot be purged.
_MAX_TOLD = 10
_FIELDS = {
    "dids": dg.Field(
        [str],
        default_value=[],
        description="Accounts to purge. Better in a file: a run's configuration is kept with its history.",
    ),
    "uris": dg.Field(
        [str], default_value=[], description="Single records to purge, at://<did>/<collection>/<rkey>."
    ),
    "file": dg.Field(
        dg.Noneable(str), default_value=None, description="A text file with one DID or URI to purge a line."
    ),
}


class PurgeSettings(dg.Config):
    """What to purge; see `_FIELDS`."""

    dids: list[str]
    uris: list[str]
    file: str | None


def purge_job(study: Study, begin: Begin, rebuild: Rebuild) -> dg.JobDefinition:
    """Return the job that removes accounts and records for good; `rebuild` makes the tables anew."""
    name = f"{study.name}_purge"

    @dg.op(
        name=f"{name}__remove",
        out=dg.Out(dg.Nothing),
        description="Removes them and keeps them from coming back.",
    )
    def remove(context: dg.OpExecutionContext, config: PurgeSettings, study_lock: StudyLockResource) -> None:
        with clear_failures():
            begin(context, study, study_lock)
            watched = watched_run(context.run)
            with watched.stage("purge") if watched else nullcontext():
                _purge(context, study, config, rebuild)

    @dg.config_mapping(config_schema=_FIELDS)
    def settings(given: dict[str, Any]) -> dict[str, Any]:
        return {**console_config(study), "ops": {remove.name: {"config": given}}}

    @dg.job(
        name=name,
        config=settings,
        tags=run_tags(study, "purge"),
        description=f"Removes accounts and records from all that `{study.name}` has stored, for good, and keeps them "
        "from being collected again.",
    )
    def job() -> None:
        remove()

    return job


def purge_expired(context: dg.OpExecutionContext, study: Study, rebuild: Rebuild) -> bool:
    """Purge the accounts whose time is up by the study's settings; tell whether any was, and the tables are built."""
    report = purging.purge_expired(study, rebuild=lambda study: rebuild(context, study))
    if report is not None:
        _tell(context, study, report)
    return report is not None


def finish_purge(context: dg.OpExecutionContext, study: Study, rebuild: Rebuild) -> None:
    """Finish a purge that was interrupted, if there is one."""
    if purging.is_purge_unfinished(study):
        context.log.info("An earlier purge was not finished; this is done first.")
        _tell(context, study, purging.purge(study, rebuild=lambda study: rebuild(context, study)))


def _purge(context: dg.OpExecutionContext, study: Study, config: PurgeSettings, rebuild: Rebuild) -> None:
    if not (config.dids or config.uris or config.file or purging.is_purge_unfinished(study)):
        raise ConfigError("run config: nothing to purge is named; give dids, uris or file")
    report = purging.purge(
        study,
        dids=config.dids,
        uris=config.uris,
        file=Path(config.file) if config.file else None,
        rebuild=lambda study: rebuild(context, study),
    )
    metadata = _tell(context, study, report)
    if config.dids or config.uris:
        hint = (
            f"This run's own configuration names them, and a run cannot delete itself: `dagster run delete "
            f"{context.run_id}`, or the next purge, removes it. Given in a file, they leave no trace."
        )
        context.log.warning(hint)
        metadata["this_run"] = hint
    context.add_output_metadata(metadata)
    if report.not_purged:
        raise StorageError(
            f"the purge is not done: all is purged but {len(report.not_purged):,} files of frozen builds, such as "
            f"{report.not_purged[0]}, and run {study.name}_purge again, without a configuration"
        )


def _tell(context: dg.OpExecutionContext, study: Study, report: PurgeReport) -> dict[str, Any]:
    """Take what was purged out of Dagster's history as well, and say in numbers what was removed."""
    history = forget_purged(context.instance, study, Tombstones.load(StudyStorage(study.location)))
    _log_changes(context, study, report)
    rows = {f"removed_{kind}": rows for kind, rows in report.removed.items()}
    runs = {"removed_runs": history.runs, "removed_outputs_of_runs": history.outputs}
    counts = {
        "accounts": report.accounts,
        "records": report.records,
        **rows,
        "masked_in_records_of_others": report.masked,
        "masked_in_log_lines": report.masked_in_log,
        **runs,
    }
    listed = ", ".join(
        f"{number:,} {kind.removeprefix('removed_')}" for kind, number in (rows | runs).items() if number
    )
    count(context, "purge", **{name: int(number) for name, number in counts.items()})
    context.log.info(
        f"Purged {report.accounts:,} accounts and {report.records:,} single records; removed: {listed or 'nothing'}; "
        f"masked in {report.masked:,} records of others."
    )
    if report.named_in_config:
        context.log.warning(
            f"The study's YAML still names {report.named_in_config:,} of the accounts that are purged; they are passed "
            "over, but only its owner can take them out of it."
        )
        counts["still_named_in_the_yaml"] = report.named_in_config
    for told in report.not_purged[:_MAX_TOLD]:
        context.log.warning(f"A frozen build is not purged: {told}; each run looks at it again.")
    if report.not_purged:
        counts["files_not_purged"] = len(report.not_purged)
    live = [run_id for run_id in history.live if run_id != context.run_id]
    if live:
        context.log.warning(
            f"Runs that name somebody are not over yet: {', '.join(live)}; purge again when they are."
        )
    return counts


def _log_changes(context: dg.OpExecutionContext, study: Study, report: PurgeReport) -> None:
    """Record the files that changed without being built anew, so that the last word on each asset holds."""
    storage = StudyStorage(study.location)
    for name, key in (("source_dids", study_files.SOURCE_KEY), ("directory", study_files.DIRECTORY_KEY)):
        if report.removed.get(name):
            rows = storage.scan_as_it_is(key).select(pl.len()).collect().item()
            _log(context, study, name, None, int(rows))
    for host in report.hosts:
        _log(context, study, "repos", host, stored_records(read_ledger(storage, [host])))
    for build in list_frozen(study) if report.removed.get("frozen") else ():
        if build.label == study.snapshot:
            _log(context, study, "frozen", None, build.files.height)


def _log(context: dg.OpExecutionContext, study: Study, name: str, partition: str | None, rows: int) -> None:
    context.log_event(
        dg.AssetMaterialization(
            asset_key=[study.name, name],
            partition=partition,
            metadata={
                "dagster/row_count" if partition is None else "dagster/partition_row_count": rows,
                "changed_by": "purge",
            },
        )
    )
