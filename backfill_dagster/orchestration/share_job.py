"""Sharing as a job: what others may have of a study, written beside it. The job tells numbers, and names no account."""

from contextlib import nullcontext

import dagster as dg
import polars as pl

from backfill_dagster.config.study import Study
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.metadata import counts_table, file_path
from backfill_dagster.orchestration.purge_job import Begin, Rebuild, finish_purge
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.tags import run_tags
from backfill_dagster.orchestration.watched_run import count, watched_run
from backfill_dagster.sharing.share import Shared, share
from backfill_dagster.sharing.shared_folder import IDS


def share_job(study: Study, begin: Begin, rebuild: Rebuild) -> dg.JobDefinition:
    """Return the job that writes what the study shares; `rebuild` makes the tables anew after an unfinished purge."""
    name = f"{study.name}_share"

    @dg.op(
        name=f"{name}__write",
        out=dg.Out(dg.Nothing),
        description="Writes what the study's `sharing` says, and a manifest of it.",
    )
    def hand_on(context: dg.OpExecutionContext, study_lock: StudyLockResource) -> None:
        with clear_failures():
            begin(context, study, study_lock)
            # Who is to be purged must not be handed on.
            finish_purge(context, study, rebuild)
            watched = watched_run(context.run)
            with watched.stage("share") if watched else nullcontext():
                done = share(study)
                count(context, "share", accounts=done.accounts, **done.rows)
            _tell(context, study, done)

    @dg.job(
        name=name,
        config=console_config(study),
        tags=run_tags(study, "share"),
        description=f"Writes what others may have of `{study.name}`: "
        + (
            "the ids of its records, to find them again."
            if study.sharing.what == IDS
            else "its tables under pseudonyms, without text."
        ),
    )
    def job() -> None:
        hand_on()

    return job


def _tell(context: dg.OpExecutionContext, study: Study, done: Shared) -> None:
    place = study.location / done.folder
    listed = ", ".join(f"{rows:,} {table}" for table, rows in done.rows.items())
    context.log.info(f"Shared as {done.what}: {done.accounts:,} accounts with {listed}. They are in {place}")
    if done.what != IDS:
        context.log.warning(
            "Pseudonyms are no anonymity: who follows and likes whom, and when, is public, and can tell who somebody "
            "is. Read docs/how_to/share.md before this leaves your hands."
        )
    rows = pl.DataFrame({"table": list(done.rows), "rows": list(done.rows.values())})
    context.add_output_metadata(
        {
            "what": done.what,
            "accounts": done.accounts,
            "records": sum(done.rows.values()),
            "rows_by_table": counts_table(rows),
            "manifest_sha256": done.digest,
            "path": file_path(place),
        }
    )
