"""Studies that ask for less than repositories, as the UI shows them."""

from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.studies import sandbox, sandbox_study

LIKE = "app.bsky.feed.like"
DROP = {"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop"}


@pytest.fixture
def network() -> SandboxNetwork:
    network = sandbox()
    network.faults.clear()
    network.requests.clear()
    return network


def shown(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """The metadata of each host's latest materialization of `repos`."""
    latest: dict[str | None, dict[str, Any]] = {}
    records = instance.fetch_materializations(dg.AssetKey(["study", "repos"]), limit=1000).records
    for record in reversed(records):
        assert record.asset_materialization is not None
        latest[record.partition_key] = {
            name: value.value for name, value in record.asset_materialization.metadata.items()
        }
    return list(latest.values())


@pytest.mark.parametrize("fetch", ["records", "list_records"])
def test_what_was_obtained_and_what_is_not_there_is_shown(
    fetch: str, network: SandboxNetwork, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    uris = [
        next((record.uri for record in network.truth.records(did) if record.collection == LIKE), None)
        for did in network.dids[:20]
    ]
    likes = [uri for uri in uris if uri is not None]
    missing = f"{likes[0].rpartition('/')[0]}/3kaaaaaaaaa22"
    study = sandbox_study(
        tmp_path,
        fetch=fetch,
        time_range=DROP,
        record_types=[LIKE],
        filters={LIKE: {"uris": {"type": "inline", "uris": [*likes, missing]}}},
        network={"directory_max_age_hours": 0},
    )
    assert execute(tmp_path, "study", instance)
    hosts = shown(instance)
    assert sum(host["records_absent"] for host in hosts) == (fetch == "records")
    way = {"records": "record_proof", "list_records": "list_records"}[fetch]
    assert all(f"| {way} |" in host["stored_by_how_obtained"] for host in hosts if host["accounts_complete"])
    accounts = pl.read_parquet(study.root / "accounts.parquet")
    assert accounts["records_absent"].sum() == (fetch == "records")
    states = set(accounts["state"])
    assert ("nothing_asked" in states) == (fetch == "records")
    checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [
            dg.AssetCheckKey(dg.AssetKey(["study", "accounts"]), name)
            for name in ("records_reconcile", "every_account_has_a_state", "signatures_accounted_for")
        ]
    )
    assert len(checks) == 3
    assert all(record.event.asset_check_evaluation.passed for record in checks.values())  # type: ignore[union-attr]

    # Nobody has written: a refresh asks for revisions, and for nothing else of those who are stored.
    network.requests.clear()
    assert execute(tmp_path, "study_refresh", instance)
    stored = set(accounts.filter(state="complete")["did"])
    asked = {
        request.did
        for request in network.requests.all()
        if request.path.endswith(("sync.getRecord", "repo.listRecords", "sync.getRepo"))
    }
    assert not asked & stored
