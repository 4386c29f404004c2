"""A study that runs itself: `dagster dev` with sensors on, and nothing but the source and the network changes.

Opt in with `pytest --daemon`.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.orchestration.tags import PARENT_TAG
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster_tests.deployment.dagster_dev import Deployment, dagster_dev

pytestmark = pytest.mark.daemon

SETTINGS = SandboxSettings(seed=5, accounts=30, hosts=2, records=40)
GET_REPO = "com.atproto.sync.getRepo"
STAGES = ["discover", "fetch", "convert", "tables", "accounts"]
# For five runs that follow one another, each a process of its own that a tick of a sensor requests.
PATIENCE_SECONDS = 240


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    with SandboxNetwork(SETTINGS) as network:
        yield network


@pytest.fixture
def newcomer(network: SandboxNetwork) -> str:
    """The account that is not in the source from the beginning."""
    return next(account.did for account in network.truth.accounts() if account.role is Role.NORMAL)


@pytest.fixture
def source(network: SandboxNetwork, newcomer: str, tmp_path: Path) -> Path:
    path = tmp_path / "dids.txt"
    path.write_text("".join(f"{did}\n" for did in network.dids if did != newcomer))
    return path


@pytest.fixture
def deployment(network: SandboxNetwork, source: Path, tmp_path: Path) -> Iterator[Deployment]:
    study = {
        "name": "study",
        "source": {"type": "text", "path": str(source)},
        "storage": {"path": str(tmp_path / "data")},
        "processing": {"requests_per_second": 100, "workers": 2},
        "automation": {"on_new_dids": True, "on_new_hosts": True},
        "network": {
            "plc_url": network.plc_url,
            "plc_requests_per_second": 1000,
            "connect_to": network.connect_to,
        },
    }
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "study.yaml").write_text(yaml.safe_dump({"backfill": study}))
    with dagster_dev(tmp_path) as deployment:
        yield deployment


def collected(deployment: Deployment) -> dict[str, set[str]]:
    """Return the URIs of the records in the tables, by the account whose they are."""
    root = deployment.folder / "data/study"
    paths = [*root.glob("tables/*/*/*.parquet"), *root.glob("undated/*/*.parquet")]
    uris: dict[str, set[str]] = {}
    for path in paths:
        for did, uri in pl.read_parquet(path, columns=["did", "uri"]).iter_rows():
            uris.setdefault(did, set()).add(uri)
    return uris


def true_records(network: SandboxNetwork, dids: list[str]) -> dict[str, set[str]]:
    """Return what `collected` must give for these accounts."""
    uris = {
        did: {record.uri for record in network.truth.records(did) if record.table is not None} for did in dids
    }
    return {did: records for did, records in uris.items() if records}


def states(deployment: Deployment) -> dict[str, str]:
    """Return the state of each account that the table of accounts shows."""
    path = deployment.folder / "data/study/accounts.parquet"
    return dict(pl.read_parquet(path).select("did", "state").iter_rows()) if path.exists() else {}


def stages(deployment: Deployment) -> list[str]:
    """Return the stages that ran by themselves, in their order; every run up to now must have succeeded."""
    runs = deployment.runs()
    assert {run.status for run in runs if run.is_over} <= {"SUCCESS"}
    return [run.job.removeprefix("study_stage_") for run in runs if PARENT_TAG not in run.tags]


def is_quiet(deployment: Deployment) -> bool:
    return all(run.is_over for run in deployment.runs())


def test_a_study_follows_its_source_and_a_refresh_follows_the_network(
    deployment: Deployment, network: SandboxNetwork, source: Path, newcomer: str
) -> None:
    others = [did for did in network.dids if did != newcomer]
    # Nobody says what to do: the source is there, and the sensors are on.
    deployment.wait_for(
        "the tables appear",
        lambda: states(deployment).keys() == set(others) and is_quiet(deployment),
        PATIENCE_SECONDS,
    )
    assert stages(deployment) == STAGES
    assert collected(deployment) == true_records(network, others)

    with source.open("a") as file:
        file.write(f"{newcomer}\n")
    deployment.wait_for(
        "the new account's records are in the tables",
        lambda: states(deployment).get(newcomer) == "complete" and is_quiet(deployment),
        PATIENCE_SECONDS,
    )
    ran = stages(deployment)[len(STAGES) :]
    # The table of accounts may show the account before it is fetched, if that sensor is the first to look.
    if ran[1] == "accounts":
        del ran[1]
    assert ran == STAGES
    before = collected(deployment)
    assert before == true_records(network, network.dids)
    # No repository was asked for twice, and none of a whole account was left out.
    asked = Counter(request.did for request in network.requests.all(path=GET_REPO))
    assert set(asked.values()) == {1}
    assert {account.did for account in network.truth.accounts() if account.is_complete} <= asked.keys()

    gone = next(record for record in network.truth.records(newcomer) if record.table == "likes")
    network.edit.delete(newcomer, gone.collection, gone.rkey)
    network.requests.clear()
    run_id = deployment.launch("study_refresh")
    deployment.wait_for(
        "the refresh is over",
        lambda: any(run.id == run_id and run.is_over for run in deployment.runs()),
        PATIENCE_SECONDS,
    )
    assert stages(deployment)[-2:] == [STAGES[-1], "study_refresh"]
    after = collected(deployment)
    assert before[newcomer] - after[newcomer] == {gone.uri}
    assert after == true_records(network, network.dids)
    # Only what had moved on was fetched; accounts that had no repository to give were asked again for one.
    asked = Counter(request.did for request in network.requests.all(path=GET_REPO))
    assert set(asked.values()) == {1}
    assert {account.did for account in network.truth.accounts() if account.is_complete} & asked.keys() == {
        newcomer
    }
