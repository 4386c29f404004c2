"""Verifying by Dagster: the job's end says whether all holds, in numbers; and the manifest as an asset."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.manifest.canonical import Told
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, MANIFEST_KEY, VERDICTS_KEY
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=29, accounts=30, hosts=1, records=3)


def text_of(instance: dg.DagsterInstance, job: str) -> str:
    """Return all that a run of a job has left in the event log."""
    [run] = instance.get_runs(dg.RunsFilter(job_name=job), limit=1)
    return "\n".join(str(entry.to_json()) for entry in instance.all_logs(run.run_id))  # type: ignore[no-untyped-call]


def test_a_study_is_collected_and_verified_and_fails_when_a_byte_is_flipped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = sandbox(SETTINGS)
    network.faults.clear()
    period = {"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop"}
    study = sandbox_study(
        tmp_path,
        "study",
        SETTINGS,
        time_range=period,
        record_types=["app.bsky.feed.post"],
        processing={"requests_per_second": 500, "workers": 1},
    )
    with dg.DagsterInstance.ephemeral() as instance:
        assert execute(tmp_path, "study", instance)
        manifest = Told.from_bytes((study.root / MANIFEST_KEY).read_bytes())
        runs = {run.run_id for run in instance.get_runs()}
        [whole] = instance.get_runs(dg.RunsFilter(job_name="study"))
        assert whole.run_id in manifest.made["dagster_runs"]
        assert set(manifest.made["dagster_runs"]) <= runs
        event = instance.get_latest_materialization_event(dg.AssetKey(["study", "manifest"]))
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.metadata["sha256"].value == manifest.digest

        assert execute(tmp_path, "study_verify", instance)
        [verified] = instance.get_runs(dg.RunsFilter(job_name="study_verify"))
        certificate = Told.from_bytes((study.root / CERTIFICATE_KEY).read_bytes())
        assert certificate.content["holds"]
        assert certificate.content["manifest_sha256"] == manifest.digest
        assert certificate.made["dagster_runs"] == [verified.run_id]
        proven = certificate.content["verdicts"]["counts"]["proven"]
        assert f"{proven:>9,}  proven" in capfd.readouterr().err

        path = max(study.root.glob("tables/posts/*/*.parquet"))
        data = bytearray(path.read_bytes())
        data[5] ^= 1
        path.write_bytes(data)
        assert not execute(tmp_path, "study_verify", instance)
        told = text_of(instance, "study_verify")
    assert "changed, 1 of them" in told
    dids = pl.read_parquet(study.root / VERDICTS_KEY)["did"]
    assert dids.len() == SETTINGS.accounts
    assert [did for did in dids if did in told] == []
