"""The API in front of a real webserver and daemon: start, watch, cancel in mid-fetch, start again, to completion.

Opt in with `pytest --daemon`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.orchestration.tags import PARENT_TAG, STARTED_BY_TAG
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.api.serving_stub import operations_document, without_examples
from backfill_dagster_tests.deployment.api_process import RunningApi, api_process
from backfill_dagster_tests.deployment.dagster_dev import Deployment, dagster_dev

pytestmark = pytest.mark.daemon

SETTINGS = SandboxSettings(seed=5, accounts=40, hosts=1, records=30)
# Two tables are built sooner than five.
RECORD_TYPES, TABLES = ["app.bsky.feed.like", "app.bsky.graph.follow"], ("likes", "follows")
GET_REPO = "com.atproto.sync.getRepo"
PATIENCE_SECONDS = 180
OVER = ("succeeded", "failed", "canceled")
FUZZ_EXAMPLES = 15

schema = schemathesis.openapi.from_dict(without_examples(operations_document()))


@pytest.fixture(scope="module")
def network() -> Iterator[SandboxNetwork]:
    with SandboxNetwork(SETTINGS) as network:
        yield network


@pytest.fixture(scope="module")
def deployment(network: SandboxNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with one study, whose fetch takes half a minute."""
    folder = tmp_path_factory.mktemp("api")
    study = {
        "name": "slow",
        "source": {"type": "inline", "dids": list(network.dids)},
        "record_types": RECORD_TYPES,
        "storage": {"path": "data"},
        "processing": {"requests_per_second": 1, "requests_in_flight": 1, "workers": 1, "batch_size": 4},
        "network": {
            "plc_url": network.plc_url,
            "plc_requests_per_second": 1000,
            "connect_to": network.connect_to,
        },
    }
    (folder / "configs").mkdir()
    (folder / "configs/slow.yaml").write_text(yaml.safe_dump({"backfill": study}))
    with dagster_dev(folder) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def api(deployment: Deployment) -> Iterator[RunningApi]:
    with api_process(deployment.folder, deployment.url) as api:
        yield api


def wait_for(api: RunningApi, job_id: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return a job's status as soon as something is so; fail if it is over before, or it takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so(status := api.status(job_id)):
        assert status["state"] not in OVER, status
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    return status


def is_over(status: dict[str, Any]) -> bool:
    return status["state"] in OVER


def fetched(status: dict[str, Any]) -> int:
    """Return how many accounts the fetch is said to be done with."""
    progress = status["progress"]
    return int(progress["done"]) if progress and progress["unit"] == "accounts" else 0


def settled(deployment: Deployment) -> set[str]:
    """Return the accounts whose attempt is stored."""
    return set(read_ledger(StudyStorage(deployment.folder / "data/slow"))["did"])


def collected(root: Path) -> set[str]:
    """Return the URIs of the records in a study's tables."""
    paths = [*root.glob("tables/*/*/*.parquet"), *root.glob("undated/*/*.parquet")]
    return {uri for path in paths for uri in pl.read_parquet(path, columns=["uri"])["uri"]}


def true_records(network: SandboxNetwork) -> set[str]:
    """Return what `collected` must give."""
    return {
        record.uri for did in network.dids for record in network.truth.records(did) if record.table in TABLES
    }


def test_a_job_is_started_watched_canceled_and_finished(
    api: RunningApi, deployment: Deployment, network: SandboxNetwork
) -> None:
    assert api.ask("POST", "/api/backfill/start", token="reader", config="slow").status_code == 403
    started = api.ask("POST", "/api/backfill/start", config="slow")
    assert started.status_code == 202, started.text
    first = started.json()["job_id"]
    beside = api.ask("POST", "/api/backfill/start", config="slow")
    assert beside.status_code == 409
    assert first in beside.json()["error"]["message"]

    some = fetched(wait_for(api, first, lambda status: fetched(status) > 0))
    more = wait_for(api, first, lambda status: fetched(status) > some)
    assert (more["state"], more["stage"], more["started_by"]) == ("running", "fetch", "api:runner")
    assert fetched(more) < more["progress"]["total"]
    assert api.ask("DELETE", f"/api/backfill/jobs/{first}", token="reader").status_code == 403
    canceled = api.ask("DELETE", f"/api/backfill/jobs/{first}")
    assert (canceled.status_code, canceled.json()["job_id"]) == (202, first)
    ended = wait_for(api, first, is_over)
    assert ended["state"] == "canceled"
    assert [(stage["stage"], stage["state"]) for stage in ended["stages"]] == [
        ("discover", "succeeded"),
        ("fetch", "canceled"),
    ]
    # Nothing of it is left at work, and what it fetched is kept.
    own = {run.id: run for run in deployment.runs()}
    assert own[first].tags[STARTED_BY_TAG] == "api:runner"
    assert all(run.is_over for run in own.values() if first in (run.id, run.tags.get(PARENT_TAG)))
    kept = settled(deployment)
    assert len(kept) >= fetched(more)
    assert api.ask("DELETE", f"/api/backfill/jobs/{first}").status_code == 409

    second = api.ask("POST", "/api/backfill/start", config="slow", settings={"requests_per_second": 500})
    assert second.status_code == 202, second.text
    finished = wait_for(api, second.json()["job_id"], is_over)
    assert (finished["state"], finished["errors"]) == ("succeeded", [])
    assert finished["counts"]["accounts"] == len(network.dids)
    assert finished["counts"]["accounts_by_state"]["complete"] == sum(
        account.is_complete for account in network.truth.accounts()
    )
    assert collected(deployment.folder / "data/slow") == true_records(network)
    assert finished["counts"]["records_kept"] == len(true_records(network))
    assert kept < settled(deployment)
    # What was kept was not asked for again.
    asked = Counter(request.did for request in network.requests.all(path=GET_REPO))
    assert {asked[did] for did in kept} == {1}


def test_a_whole_yaml_appears_and_runs(
    api: RunningApi, deployment: Deployment, network: SandboxNetwork
) -> None:
    study = {
        "name": "posted",
        "description": "Came over the network.",
        "source": {"type": "inline", "dids": list(network.dids)},
        "record_types": RECORD_TYPES,
        "processing": {"requests_per_second": 500, "workers": 1},
        "network": {"sandbox": SETTINGS.model_dump(), "plc_requests_per_second": 1000},
    }
    text = yaml.safe_dump({"backfill": study})
    assert api.ask("POST", "/api/backfill/start", yaml=text).status_code == 403
    started = api.ask("POST", "/api/backfill/start", token="admin", yaml=text)
    assert started.status_code == 202, started.text
    assert (deployment.folder / "configs/posted.yaml").read_text() == text
    listed = api.ask("GET", "/api/backfill/configs", token="reader").json()["configs"]
    assert [(config["name"], config["state"]) for config in listed] == [
        ("posted", "ready"),
        ("slow", "ready"),
    ]
    finished = wait_for(api, started.json()["job_id"], is_over)
    assert (finished["state"], finished["started_by"]) == ("succeeded", "api:admin")
    assert collected(deployment.folder / "data/posted") == true_records(network)


@schema.parametrize()
@settings(max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_the_servers_fault(case: schemathesis.Case[Any], api: RunningApi) -> None:
    # Nobody may start what the fuzzer has written, should it ever be a study.
    token = api.tokens["admin" if case.path == "/api/backfill/configs" else "runner"]
    case.call_and_validate(
        base_url=api.url,
        timeout=60,
        headers={"Authorization": f"Bearer {token}"},
        checks=[not_a_server_error],
    )


def test_dagster_that_is_gone_is_a_clear_answer(api: RunningApi, tmp_path: Path) -> None:
    with api_process(tmp_path, "http://127.0.0.1:9") as alone:
        answer = alone.ask("GET", "/api/backfill/configs")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "dagster_unreachable")
    assert api.ask("GET", "/api/backfill/configs").status_code == 200
