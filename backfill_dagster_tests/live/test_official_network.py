"""The whole study by its one command, against the official PLC and PDS software, held against its manifest.

Opt in with `pytest --live`. The servers are installed once into $REALPDS_HOME (by default in the user's cache).
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import yaml

pytestmark = pytest.mark.live

START = Path(__file__).with_name("start_network.sh")
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
    home = Path(os.environ.get("REALPDS_HOME", Path.home() / ".cache" / "backfill_dagster_realpds"))
    process = subprocess.Popen(
        [str(START), str(shared_dir / "realpds"), str(home)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            for line in process.stdout:
                if line.startswith("READY "):
                    break
            else:
                pytest.fail("the official network did not start")
            yield json.loads((home / "manifest.json").read_text())
    finally:
        process.terminate()
        process.wait(timeout=30)


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
