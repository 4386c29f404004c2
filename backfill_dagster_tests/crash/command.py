"""The program that crash tests kill: what one of a study's jobs does, without Dagster; `launcher` starts it.

Its folder holds `study.yaml`. At the end, `requests.json` beside it lists the DIDs whose repositories were asked for.
With the lock, the study is taken first as a job takes it, which costs the import of Dagster.
"""

from pathlib import Path

import orjson

STUDY = "study"
GET_REPO = "com.atproto.sync.getRepo"


def main(folder: Path, task: str, *, lock: bool) -> None:
    # Imported here, because every worker process imports this module.
    from backfill_dagster import handing_over, pipeline, purging
    from backfill_dagster.config.loading import load_study
    from backfill_dagster.frozen.freeze import freeze
    from backfill_dagster.report.page import build_report
    from backfill_dagster.repos import ledger_lots
    from backfill_dagster.sandbox.network import process_sandbox
    from backfill_dagster.verification.verify import verify
    from backfill_dagster_tests.crash.handed_over import take_over
    from backfill_dagster_tests.crash.scenario import in_parts, set_faults, to_purge
    from backfill_dagster_tests.crash.shared import leave_rehydration, rebuilt, share_both
    from backfill_dagster_tests.crash.watched import watched

    # As those of a large study are: in several ranges.
    ledger_lots.ACCOUNTS_AT_ONCE = 12
    study = load_study(folder / f"{STUDY}.yaml")
    assert study.network.sandbox is not None
    network = process_sandbox(study.network.sandbox)
    if lock:
        import dagster as dg

        from backfill_dagster.orchestration.resources import StudyLockResource

        study_lock = StudyLockResource()
        with study_lock.yield_for_execution(dg.build_init_resource_context()):
            study_lock.take(study, "crash-test")
    with watched(study, task, network.dids if task == "collect" else ()):
        if task == "purge":
            # What a verification leaves names people, too.
            verify(study)
            dids, uris = to_purge(network)
            leave_rehydration(study, dids[0])
            purging.purge(study, dids=dids, uris=uris)
        elif task == "parts":
            *_, one_by_one = parts = in_parts(study)
            for part in [*parts, rebuilt(one_by_one)]:
                pipeline.collect_source(part)
                pipeline.resolve_accounts(part)
                pipeline.fetch_repos(part)
                pipeline.convert_records(part)
                pipeline.build_tables(part)
                if part is one_by_one:
                    share_both(part)
        else:
            set_faults(network)
            pipeline.collect_source(study)
            pipeline.resolve_accounts(study)
            pipeline.fetch_repos(study)
            pipeline.convert_records(study)
            pipeline.build_tables(study)
            handing_over.hand_over_all(study)
            take_over(folder, study, to_purge(network)[0][0], "block")
            build_report(study)
            freeze(study)
            share_both(study)
    asked = [request.did for request in network.requests.all(path=GET_REPO)]
    (folder / "requests.json").write_bytes(orjson.dumps(asked))
