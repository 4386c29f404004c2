"""The whole study by its one command, against the official PLC and PDS software, held against its manifest.

And the sources that such servers give, the last of which write into an account.

Opt in with `pytest --live`. The servers are installed once into $REALPDS_HOME (by default in the user's cache).
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import polars as pl
import pytest
import yaml

from backfill_dagster import pipeline
from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import Study
from backfill_dagster_tests.live.official import official_network
from backfill_dagster_tests.studies import resolved_directory

pytestmark = pytest.mark.live

TABLES = ["posts", "replies", "likes", "reposts", "follows", "blocks"]
COLLECTIONS = {
    "app.bsky.feed.like": "likes",
    "app.bsky.feed.repost": "reposts",
    "app.bsky.graph.follow": "follows",
    "app.bsky.graph.block": "blocks",
}
# What an account's role on the official servers must end as.
STATES = {
    "deactivated": "deactivated",
    "takendown": "takendown",
    "deleted": "not_found",
    "tombstoned": "tombstoned",
}


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> Iterator[dict[str, Any]]:
    with official_network(shared_dir, 2582) as started:
        yield started


@pytest.fixture(scope="module")
def workplace(manifest: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    (folder / "configs").mkdir()
    study = {
        "name": "official",
        "source": {"type": "inline", "dids": [account["did"] for account in manifest["accounts"]]},
        "time_range": {"start_date": "2026-06-01", "end_date": "2026-09-30"},
        "storage": {"path": str(folder / "data")},
        "network": {"plc_url": "http://localhost:2582", "allow_private_addresses": True},
    }
    (folder / "configs/official.yaml").write_text(yaml.safe_dump({"backfill": study}))
    return folder


def run_job(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("dagster")),
            "job",
            "execute",
            "-m",
            "backfill_dagster",
            "-j",
            "official",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def collected(workplace: Path) -> Path:
    done = run_job(workplace)
    assert done.returncode == 0, done.stderr
    return workplace / "data/official"


def live_records(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Records that stand in the repositories of accounts that can be fetched, whatever their collection."""
    return {record["uri"]: record for record in manifest["records"] if record["fetchable"]}


def test_every_account_ends_in_its_true_state(manifest: dict[str, Any], collected: Path) -> None:
    accounts = pl.read_parquet(collected / "accounts.parquet")
    found = dict(accounts.select("did", "state").iter_rows())
    expected = {account["did"]: STATES.get(account["role"], "complete") for account in manifest["accounts"]}
    assert found == expected
    migrated = {account["did"] for account in manifest["accounts"] if account["role"] == "migrated"}
    assert set(accounts.filter(pl.col("signed_by") == "previous")["did"]) <= migrated


def test_every_record_of_the_manifest_is_there_and_no_other(
    manifest: dict[str, Any], collected: Path
) -> None:
    expected = live_records(manifest)
    counts: Counter[str] = Counter()
    for table in TABLES:
        paths = [
            *collected.glob(f"tables/{table}/month=*/*.parquet"),
            *collected.glob(f"undated/{table}/*.parquet"),
        ]
        rows = pl.read_parquet(paths, hive_partitioning=False)
        for row in rows.iter_rows(named=True):
            record = expected.pop(row["uri"])
            assert row["cid"] == record["cid"], row["uri"]
            assert orjson.loads(row["record"]) == record["value"], row["uri"]
            if record["inRange"] is not None:
                assert row["in_range"] == record["inRange"], row["uri"]
            assert table == COLLECTIONS.get(
                row["collection"], "replies" if "reply" in record["value"] else "posts"
            )
            counts[table] += 1
    left = {uri.split("/")[3] for uri in expected}
    assert not left & {"app.bsky.feed.post", *COLLECTIONS}
    assert min(counts[table] for table in TABLES) > 0


def test_the_sums_reconcile_with_the_manifest(manifest: dict[str, Any], collected: Path) -> None:
    accounts = pl.read_parquet(collected / "accounts.parquet")
    true_counts = Counter(uri.split("/")[2] for uri in live_records(manifest))
    for row in accounts.iter_rows(named=True):
        assert row["records_fetched"] == true_counts[row["did"]]
        assert (
            row["records_fetched"] == row["records_kept"] + row["records_filtered"] + row["records_rejected"]
        )


def test_a_second_run_changes_no_byte(collected: Path, workplace: Path) -> None:
    before = {path: path.read_bytes() for path in collected.glob("tables/**/*.parquet")}
    done = run_job(workplace)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.read_bytes() for path in collected.glob("tables/**/*.parquet")}


# --- what the official servers list ---


def collect_from(folder: Path, source: dict[str, Any], name: str) -> tuple[Study, list[str]]:
    """Return a study of this source, and the DIDs that it gives."""
    study = {
        "name": name,
        "source": source,
        "storage": {"path": str(folder / "data")},
        "network": {
            "plc_url": "http://localhost:2582",
            "allow_private_addresses": True,
            "plc_export": {"use": "always"},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"backfill": study}))
    loaded = load_study(path)
    return loaded, pipeline.collect_source(loaded).dids["did"].to_list()


def test_everyone_on_the_official_hosts(manifest: dict[str, Any], tmp_path: Path) -> None:
    hosts = sorted({account["pds"] for account in manifest["accounts"]})

    study, dids = collect_from(tmp_path, {"type": "pds", "hosts": hosts}, "hosts")

    expected = {account["did"] for account in manifest["accounts"] if account["status"] != "deleted"}
    assert set(dids) == expected
    # The released directory lists nothing at `/export`, so that everyone is looked up one by one.
    directory = resolved_directory(study)
    assert set(directory["resolved_by"]) == {"lookup"}
    assert set(directory["state"]) == {"resolved"}


def test_a_list_and_a_starter_pack_of_an_official_account(manifest: dict[str, Any], tmp_path: Path) -> None:
    owner = next(account for account in manifest["accounts"] if account["role"] == "normal")
    members = [account["did"] for account in manifest["accounts"][:5]]

    def call(method: str, body: dict[str, Any], token: str | None = None) -> dict[str, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = httpx.post(f"{owner['pds']}/xrpc/{method}", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    login = {"identifier": owner["handle"], "password": owner["password"]}
    token = call("com.atproto.server.createSession", login)["accessJwt"]

    def create(collection: str, fields: dict[str, Any]) -> str:
        record = {"$type": collection, **fields, "createdAt": "2026-07-01T00:00:00.000Z"}
        body = {"repo": owner["did"], "collection": collection, "record": record}
        return str(call("com.atproto.repo.createRecord", body, token)["uri"])

    graph = "app.bsky.graph"
    uri = create(f"{graph}.list", {"purpose": f"{graph}.defs#curatelist", "name": "some"})
    for member in members:
        create(f"{graph}.listitem", {"subject": member, "list": uri})
    pack = create(f"{graph}.starterpack", {"name": "some", "list": uri})

    assert collect_from(tmp_path, {"type": "list", "uri": uri}, "listed")[1] == members
    assert collect_from(tmp_path, {"type": "list", "uri": pack}, "packed")[1] == members


@pytest.mark.parametrize("fetch", ["records", "list_records"])
def test_every_record_can_be_had_by_itself_and_from_a_listing(
    fetch: str, manifest: dict[str, Any], tmp_path: Path
) -> None:
    """By name, those that were deleted are asked for as well, and proven to be gone."""
    types = ["app.bsky.feed.post", *COLLECTIONS]
    live = {uri: record for uri, record in live_records(manifest).items() if uri.split("/")[3] in types}
    authors = {record["did"] for record in live.values()}
    gone = {
        record["uri"]
        for record in manifest["records"]
        if record["status"] == "deleted" and record["did"] in authors and record["collection"] in types
    }
    assert gone
    lists = {kind: sorted(uri for uri in {*live, *gone} if f"/{kind}/" in uri) for kind in types}
    study = {
        "name": "parts",
        "fetch": fetch,
        "record_types": types,
        "filters": {kind: {"uris": {"type": "inline", "uris": uris}} for kind, uris in lists.items()},
        "source": {"type": "inline", "dids": [account["did"] for account in manifest["accounts"]]},
        "time_range": {"start_date": "2026-06-01", "end_date": "2026-09-30"},
        "storage": {"path": str(tmp_path / "data")},
        "network": {"plc_url": "http://localhost:2582", "allow_private_addresses": True},
        "processing": {"requests_per_second": 200},
    }
    path = tmp_path / "parts.yaml"
    path.write_text(yaml.safe_dump({"backfill": study}))
    loaded = load_study(path)
    pipeline.collect_source(loaded)
    pipeline.resolve_accounts(loaded)
    pipeline.fetch_repos(loaded)
    pipeline.convert_records(loaded)
    accounts = pipeline.build_tables(loaded)

    tables = [*loaded.root.glob("tables/*/*/*.parquet"), *loaded.root.glob("undated/*/*.parquet")]
    found = pl.concat([pl.read_parquet(table).select("uri", "cid", "record") for table in tables])
    # The list of a server leaves out what its moderators have taken down; and JSON what it cannot express.
    missing = live.keys() - set(found["uri"])
    assert missing == set() if fetch == "records" else len(missing) < 5
    for uri, cid, record in found.iter_rows():
        assert (cid, orjson.loads(record)) == (live[uri]["cid"], live[uri]["value"])
    states = dict(accounts.select("did", "state").iter_rows())
    for account in manifest["accounts"]:
        nothing = fetch == "records" and account["did"] not in authors
        expected = "complete" if account["did"] in authors else STATES.get(account["role"], "complete")
        assert states[account["did"]] in (expected, "nothing_asked" if nothing else expected)
    if fetch == "records":
        rejects = pl.concat(
            [pl.read_parquet(each) for each in loaded.root.glob("records/*/rejects/*.parquet")]
        )
        assert set(rejects.filter(reason="absent")["uri"]) == gone
        assert accounts["records_absent"].sum() == len(gone)
