"""The program that crash tests kill: all stages of one study, as the study's job does them, in a fresh process.

    python -m backfill_dagster_tests.crash.command FOLDER [--lock]

FOLDER holds `study.yaml`. At the end, `requests.json` beside it lists the DIDs whose repositories were asked for. With
`--lock`, the study is taken first as a job takes it, which costs the import of Dagster.
"""

import sys
from pathlib import Path

import orjson

STUDY = "study"


def main(folder: Path, *, lock: bool) -> None:
    # Imported here, because every worker process imports this module.
    from backfill_dagster import pipeline
    from backfill_dagster.config import load_study
    from backfill_dagster.sandbox.network import process_sandbox
    from backfill_dagster.storage import StudyStorage
    from backfill_dagster_tests.crash.scenario import set_faults

    study = load_study(folder / f"{STUDY}.yaml")
    assert study.network.sandbox is not None
    network = process_sandbox(study.network.sandbox)
    set_faults(network)
    if lock:
        import dagster as dg

        from backfill_dagster.orchestration.resources import ExclusiveResource

        exclusive = ExclusiveResource()
        with exclusive.yield_for_execution(dg.build_init_resource_context()):
            exclusive.take(study, "crash-test")
    StudyStorage(study.root).sweep_scratch()
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    pipeline.build_tables(study)
    asked = [request.did for request in network.requests.all(path="com.atproto.sync.getRepo")]
    (folder / "requests.json").write_bytes(orjson.dumps(asked))


if __name__ == "__main__":
    main(Path(sys.argv[1]), lock="--lock" in sys.argv[2:])
