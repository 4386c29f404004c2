"""A study's job hands over what it has, and notes whom it has collected and what it came to."""

import json
from pathlib import Path

import dagster as dg
import pytest

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.metadata_stores.of_study import store_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.crash.handed_over import CONSUMERS, handed_over
from backfill_dagster_tests.metadata_stores.dynamodb_server import (
    REGION,
    TABLE,
    serve_dynamodb,
    set_credentials,
)
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox_study

SETTINGS = SandboxSettings(seed=11, accounts=30, hosts=1, records=5)
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-11-30", "outside": "drop"}


def metadata_of(instance: dg.DagsterInstance, asset: str) -> list[dict[str, object]]:
    """Return the metadata of each materialization of an asset, the latest first."""
    found = instance.fetch_materializations(dg.AssetKey(["study", asset]), limit=10).records
    return [
        {name: value.value for name, value in record.asset_materialization.metadata.items()}
        for record in found
        if record.asset_materialization is not None
    ]


def test_a_study_hands_over_and_notes_what_it_did(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_credentials(monkeypatch)
    with serve_dynamodb() as server:
        told = {"type": "dynamodb", "table_name": TABLE, "region": REGION, "endpoint_url": server.url}
        study = sandbox_study(
            tmp_path,
            settings=SETTINGS,
            time_range=PERIOD,
            metadata_store=told,
            integrations={"consumers": {**CONSUMERS, "files": {**CONSUMERS["files"], "batch_size": 100}}},
        )
        execute(tmp_path, "study", instance)
        taken = handed_over(study)
        assert set(taken.values()) == {1}
        [of_files] = metadata_of(instance, "handoff_files")
        assert of_files["offered"] == of_files["exported"] == sum(name == "files" for name, _ in taken)
        assert of_files["already_exported"] == 0
        [of_queue] = metadata_of(instance, "handoff_queue")
        assert of_queue["exported"] == of_queue["exported_posts"] == sum(name == "queue" for name, _ in taken)

        users = list(store_of(study).users())
        accounts = StudyStorage(study.root).read("accounts.parquet").drop_nulls("obtained")
        assert [user.did for user in users] == accounts["did"].sort().to_list()
        kept = dict(accounts.select("did", "records_kept").iter_rows())
        for user in users:
            by_type = json.loads(user.total_records_by_type)
            assert user.total_records == sum(by_type.values()) == kept[user.did]
            assert user.types == ",".join(by_type)
            assert user.pds_service_endpoint.startswith("http")
        [run] = store_of(study).runs()
        assert run.status_code == 200
        assert json.loads(run.body)["accounts_complete"] == len(users)
        assert json.loads(run.metadata)["job"] == "study"
        assert "did:" not in run.body + run.metadata
        [of_users] = metadata_of(instance, "user_metadata")
        assert of_users["items_written"] == len(users)

        execute(tmp_path, "study", instance)
        assert handed_over(study) == taken
        assert len(list(store_of(study).runs())) == 2
        assert metadata_of(instance, "user_metadata")[0]["items_written"] == 0
        assert len(metadata_of(instance, "handoff_files")) == 1
