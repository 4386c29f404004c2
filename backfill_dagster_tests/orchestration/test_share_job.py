"""Sharing by Dagster: what the job says is numbers. What is rebuilt by it: `live/test_share.py`."""

from pathlib import Path

import dagster as dg
import polars as pl

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.orchestration.test_verify_job import text_of
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=29, accounts=30, hosts=1, records=3)


def test_the_job_shares_and_names_nobody_and_fails_without_a_secret(tmp_path: Path) -> None:
    network = sandbox(SETTINGS)
    network.faults.clear()
    study = sandbox_study(
        tmp_path,
        "study",
        SETTINGS,
        time_range={"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop"},
        record_types=["app.bsky.graph.follow"],
        processing={"requests_per_second": 500, "workers": 1},
        sharing={"what": "pseudonyms", "salt_variable": "NO_SUCH_VARIABLE"},
    )
    with dg.DagsterInstance.ephemeral() as instance:
        assert not execute(tmp_path, "study_share", instance)
        assert "the environment variable NO_SUCH_VARIABLE is not set" in text_of(instance, "study_share")
        assert not (study.root / "shared").exists()

        pipeline.collect_source(study)
        pipeline.resolve_accounts(study)
        pipeline.fetch_repos(study)
        pipeline.convert_records(study)
        pipeline.build_tables(study)
        path = tmp_path / "study.yaml"
        path.write_text(path.read_text().replace("pseudonyms", "ids"))
        assert execute(tmp_path, "study_share", instance)
        told = text_of(instance, "study_share")
    dids = pl.read_parquet(study.root / "shared/ids/accounts.parquet")["did"]
    follows = pl.read_parquet(study.root / "shared/ids/follows.parquet").height
    assert follows > 5
    assert f"{dids.len():,} accounts with {follows:,} follows" in told
    assert [did for did in dids if did in told] == []
