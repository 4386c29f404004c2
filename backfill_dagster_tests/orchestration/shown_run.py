"""A command with a run that takes a while, logs, and says how far it is; see test_terminal."""

import sys
import time
from pathlib import Path

import dagster as dg

from backfill_dagster.config.study import Study
from backfill_dagster.orchestration.console import console_config, console_logger
from backfill_dagster.orchestration.progress import fetch_standing, reported_progress
from backfill_dagster.orchestration.terminal import kept_stderr
from backfill_dagster.repos.crawl import Progress


@dg.asset
def repos(context: dg.AssetExecutionContext) -> None:
    progress = Progress(total=30, hosts=3)
    with reported_progress(context, "Fetching", fetch_standing) as report:
        for number in range(31):
            progress.done = number
            report(progress)
            if number % 10 == 5:
                context.log.warning(f"line {number} of the log")
            time.sleep(0.05)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    home.mkdir()
    study, studies = None, {}
    if sys.argv[2:] == ["json"]:
        source = {"type": "inline", "dids": ["did:plc:" + "a" * 24]}
        study = Study.model_validate(
            {"name": "study", "source": source, "monitoring": {"log_format": "json", "log_level": "WARNING"}}
        )
        studies[study.name] = study
        kept_stderr()
    job = dg.define_asset_job(
        "job", [repos], config=console_config(study), executor_def=dg.in_process_executor
    )
    definitions = dg.Definitions([repos], jobs=[job], loggers={"console": console_logger(studies)})
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        definitions.resolve_job_def("job").execute_in_process(instance=instance)
