"""A study of the official network that is shared and, after some of it has gone, rebuilt by somebody else.

Opt in with `pytest --live`. The two deployments share nothing but the network and the folder of ids: each has its own
folder, configs, Dagster home and processes.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import polars as pl
import pytest
import yaml

from backfill_dagster_tests.conftest import ROOT
from backfill_dagster_tests.live.official import official_network
from backfill_dagster_tests.live.people import Person, join

pytestmark = pytest.mark.live

POST, LIKE, FOLLOW = "app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow"
PLC_PORT = 2612
# What tells of the collection rather than of the record.
OF_THE_COLLECTION = ["repo_rev", "pds", "obtained", "first_for_subject"]
NETWORK = {
    "plc_url": f"http://localhost:{PLC_PORT}",
    "allow_private_addresses": True,
    "directory_max_age_hours": 0,
    "retry_base_seconds": 0.1,
}


@dataclass
class Deployment:
    """A folder in which somebody runs Dagster."""

    folder: Path

    def write(self, name: str, body: dict[str, Any]) -> None:
        configs = self.folder / "configs"
        configs.mkdir(parents=True, exist_ok=True)
        (configs / f"{name}.yaml").write_text(yaml.safe_dump({"backfill": body}, sort_keys=False))

    def execute(self, job: str) -> str:
        """Run a job by the command line, and return what it said."""
        home = self.folder / "dagster_home"
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").touch()
        done = subprocess.run(
            [sys.executable, "-m", "dagster", "job", "execute", "-m", "backfill_dagster", "-j", job],
            cwd=self.folder,
            env={**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=290,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def latest_metadata(self, study: str, asset: str) -> dict[str, Any]:
        """Return what Dagster shows of an asset."""
        with dg.DagsterInstance.from_config(str(self.folder / "dagster_home")) as instance:
            event = instance.get_latest_materialization_event(dg.AssetKey([study, asset]))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}

    def rows(self, study: str) -> pl.DataFrame:
        """Return what all tables say of their records, as JSON, with the table, the URI and the account."""
        root, found = self.folder / "data" / study, []
        for path in [*root.glob("tables/*/*/*.parquet"), *root.glob("undated/*/*.parquet")]:
            table = path.relative_to(root).parts[1]
            rows = pl.read_parquet(path, hive_partitioning=False).drop(OF_THE_COLLECTION, strict=False)
            said = pl.struct(pl.all()).struct.json_encode().alias("said")
            found.append(rows.select("did", "uri", said, table=pl.lit(table)))
        return pl.concat(found).sort("uri")


@dataclass
class Shared:
    """A study that has shared its ids, its rows by then, and what happened on the network afterwards."""

    folder: Path
    rows: pl.DataFrame
    deleted: set[str]
    edited: set[str]
    gone: dict[str, str]


@dataclass
class Rebuilt:
    """The rows of a study that was rebuilt from them, its table of outcomes, and what Dagster shows of that."""

    rows: pl.DataFrame
    outcomes: pl.DataFrame
    metadata: dict[str, Any]


@pytest.fixture(scope="module")
def network(shared_dir: Path) -> Iterator[dict[str, Any]]:
    with official_network(shared_dir, PLC_PORT, "--posts", "8", "--likes", "8", "--replies", "4") as manifest:
        yield manifest


@pytest.fixture(scope="module")
def shared(network: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Shared:
    one = network["pds"][0]
    people = {name: join(one, name) for name in ("deleter", "editor", "leaver", "sleeper")}
    for person in people.values():
        for number in range(4):
            person.create(POST, text=f"post {number}")
        subject = {"uri": f"at://{person.did}/{POST}/x", "cid": next(iter(person.cids.values()))}
        person.create(LIKE, subject=subject)
        person.create(FOLLOW, subject=people["editor"].did)
    dids = [*(account["did"] for account in network["accounts"]), *(person.did for person in people.values())]
    sharer = Deployment(tmp_path_factory.mktemp("sharer"))
    body = {
        "name": "panel",
        "source": {"type": "inline", "dids": dids},
        "time_range": {"start_date": "2026-06-01", "end_date": "2026-09-30", "outside": "drop"},
        "processing": {"requests_per_second": 200},
        "network": NETWORK,
    }
    sharer.write("panel", body)
    sharer.execute("panel")
    sharer.execute("panel_share")
    deleted, edited = change(people, network["adminAuth"])
    gone = {people["leaver"].did: "not_found", people["sleeper"].did: "deactivated"}
    folder = sharer.folder / "data/panel/shared/ids"
    return Shared(folder, sharer.rows("panel"), deleted, edited, gone)


@pytest.fixture(scope="module", params=["repos", "records"])
def rebuilt(
    request: pytest.FixtureRequest, shared: Shared, tmp_path_factory: pytest.TempPathFactory
) -> Rebuilt:
    reader = Deployment(tmp_path_factory.mktemp("reader"))
    shutil.copytree(shared.folder, reader.folder / "ids")
    body = yaml.safe_load((reader.folder / "ids/rebuilt.yaml").read_text())["backfill"]
    reader.write("rebuilt", {**body, "fetch": request.param, "network": NETWORK})
    reader.execute("rebuilt")
    reader.execute("rebuilt_verify")
    metadata = reader.latest_metadata("rebuilt", "rehydration")
    outcomes = pl.read_parquet(reader.folder / "data/rebuilt/rehydration.parquet")
    return Rebuilt(reader.rows("rebuilt"), outcomes, metadata)


def change(people: dict[str, Person], admin: str) -> tuple[set[str], set[str]]:
    """Delete three records, edit one, delete an account and deactivate another; returns the records' URIs."""
    deleter, editor, leaver = people["deleter"], people["editor"], people["leaver"]
    paths = [
        *[path for path in deleter.cids if path.startswith(POST)][:2],
        next(path for path in deleter.cids if path.startswith(LIKE)),
    ]
    for path in paths:
        deleter.delete(path)
    changed = next(iter(editor.cids))
    editor.change(changed, text="other words")
    # Written since: no reader has asked for it.
    editor.create(POST, text="a new one")
    delete_account(leaver, admin)
    people["sleeper"].call("com.atproto.server.deactivateAccount", {})
    return {f"at://{deleter.did}/{path}" for path in paths}, {f"at://{editor.did}/{changed}"}


def delete_account(person: Person, admin: str) -> None:
    """Have the operator of a PDS delete an account: its owner would need a code from a letter."""
    answer = httpx.post(
        f"{person.pds}/xrpc/com.atproto.admin.deleteAccount",
        json={"did": person.did},
        headers={"Authorization": admin},
    )
    assert answer.status_code == 200, answer.text


def test_the_tables_are_equal_less_what_is_gone(shared: Shared, rebuilt: Rebuilt) -> None:
    is_gone = pl.col("uri").is_in([*shared.deleted, *shared.edited]) | pl.col("did").is_in([*shared.gone])
    expected = shared.rows.filter(~is_gone)
    assert 50 < expected.height < shared.rows.height
    assert rebuilt.rows.equals(expected)


def test_the_report_tells_each(shared: Shared, rebuilt: Rebuilt) -> None:
    rows = rebuilt.outcomes.select("uri", "outcome", "reason").iter_rows()
    told = {uri: (outcome, reason) for uri, outcome, reason in rows}
    expected: dict[str, tuple[str, str | None]] = {}
    for did, uri in shared.rows.select("did", "uri").iter_rows():
        if uri in shared.deleted:
            expected[uri] = ("deleted", "absent")
        elif uri in shared.edited:
            expected[uri] = ("edited", None)
        elif did in shared.gone:
            expected[uri] = ("account_gone", shared.gone[did])
        else:
            expected[uri] = ("found", None)
    assert told == expected
    counts = Counter(outcome for outcome, _ in expected.values())
    assert set(counts) == {"found", "edited", "deleted", "account_gone"}
    assert sum(counts.values()) == shared.rows.height
    assert {name: rebuilt.metadata[name] for name in counts} == counts
    assert rebuilt.metadata["shared"] == shared.rows.height
    assert "did:" not in str(rebuilt.metadata)
