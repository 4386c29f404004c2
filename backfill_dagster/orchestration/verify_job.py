"""Verifying a study as a job: from its stored files alone, and failing if anything is not what it must be.

What the job tells names no account: the files that it writes do.
"""

from typing import Any

import dagster as dg
import polars as pl

from backfill_dagster.config.study import Study
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, PROBLEMS_KEY, VERDICTS_KEY
from backfill_dagster.orchestration.console import console_config
from backfill_dagster.orchestration.failures import clear_failures
from backfill_dagster.orchestration.metadata import counts_table, file_path
from backfill_dagster.orchestration.purge_job import Begin
from backfill_dagster.orchestration.resources import StudyLockResource
from backfill_dagster.orchestration.tags import run_tags
from backfill_dagster.verification.verdicts import FileProblem, SnapshotVerdict
from backfill_dagster.verification.verify import Verification, verify


def verify_job(study: Study, begin: Begin) -> dg.JobDefinition:
    """Return the job that proves a study again, offline."""
    name = f"{study.name}_verify"

    @dg.op(
        name=f"{name}__verify",
        out=dg.Out(dg.Nothing),
        description="Proves every stored repository again, makes everything again that is made of them, and compares.",
    )
    def prove(context: dg.OpExecutionContext, study_lock: StudyLockResource) -> None:
        with clear_failures():
            begin(context, study, study_lock)
            done = verify(study, run_ids=[context.run_id], on_step=context.log.info)
            metadata = _metadata(study, done)
            context.add_output_metadata(metadata)
            word = "is" if done.holds else "is not"
            context.log_event(
                dg.AssetObservation(
                    dg.AssetKey([study.name, "manifest"]),
                    description=f"What is stored {word} what was signed, fetched and built.",
                    metadata=metadata,
                )
            )
            _tell(context, study, done)

    @dg.job(
        name=name,
        config=console_config(study),
        tags=run_tags(study, "verify"),
        description=f"Proves from the files of `{study.name}` alone, without the network, that they are what was "
        "signed, fetched and built; fails if they are not. Writes a certificate.",
    )
    def job() -> None:
        prove()

    return job


def _tell(context: dg.OpExecutionContext, study: Study, done: Verification) -> None:
    """Say what came of it, in numbers; raises dg.Failure if anything is wrong."""
    lines = [f"{number:>9,}  {word}" for word, number in done.counts.items()]
    told = "\n".join(["Accounts by what of their stored snapshots is proven:", *lines])
    context.log.info(f"{told}\nThe certificate is {study.location / CERTIFICATE_KEY}")
    if done.holds:
        return
    content = done.certificate.content
    earlier = content["verdicts"]["counts_of_earlier_snapshots"]
    wrong = [
        f"{word}, {number:,} snapshots: {SnapshotVerdict(word).meaning}"
        for counts in (done.counts, earlier)
        for word, number in counts.items()
        if not SnapshotVerdict(word).holds
    ]
    wrong += [
        f"{word}, {number:,} of them: {FileProblem(word).meaning}"
        for word, number in content["problems"]["counts"].items()
    ]
    if content["not_looked_at"]:
        wrong.append(f"not looked at, because of that: {', '.join(content['not_looked_at'])}")
    raise dg.Failure(
        description="The stored files are not what they must be. "
        + " ".join(f"({number}) {text}" for number, text in enumerate(wrong, start=1))
        + f" {study.location / VERDICTS_KEY} and {study.location / PROBLEMS_KEY} name each.",
        metadata={"wrong": len(wrong)},
        allow_retries=False,
    )


def _metadata(study: Study, done: Verification) -> dict[str, Any]:
    content = done.certificate.content
    counts = [
        {"verdict": word, "accounts": number, "meaning": SnapshotVerdict(word).meaning}
        for word, number in done.counts.items()
    ]
    problems = [
        {
            "problem": word,
            "times": number,
            "meaning": FileProblem(word).meaning,
            "what to do": FileProblem(word).advice,
        }
        for word, number in content["problems"]["counts"].items()
    ]
    told: dict[str, Any] = {
        "holds": done.holds,
        "accounts": content["accounts"],
        "records": content["records"],
        "accounts_by_verdict": counts_table(pl.DataFrame(counts)),
        "accounts_per_verdict": done.counts,
        "certificate_sha256": done.certificate.digest,
        "manifest_sha256": content["manifest_sha256"] or "none",
        "path": file_path(study.location / CERTIFICATE_KEY),
    }
    if problems:
        told["problems"] = counts_table(pl.DataFrame(problems))
    return told
