"""A study in two steps: its participants first, then the posts that they engaged with, of whoever wrote them."""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.dids.syntax import check_did
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.truth import RecordTruth
from backfill_dagster_tests.orchestration.running import execute
from backfill_dagster_tests.orchestration.test_sensors import Daemon
from backfill_dagster_tests.studies import sandbox, sandbox_study

START, END = datetime(2024, 9, 27, tzinfo=UTC), datetime(2024, 12, 2, 23, 59, 59, 999999, tzinfo=UTC)
WINDOWS_END = datetime(2025, 1, 1, tzinfo=UTC)
DROP = {"start_date": "2024-09-27", "end_date": "2024-12-02", "outside": "drop"}
KINDS = ("posts", "replies", "likes", "reposts", "follows", "blocks")
PARTICIPANTS = 25
POST = "app.bsky.feed.post"
ON = {"on_new_dids": True, "on_new_hosts": True, "on_new_data": True}


@pytest.fixture(scope="module")
def network() -> Iterator[SandboxNetwork]:
    network = sandbox()
    network.faults.clear()
    yield network
    network.faults.clear()


@pytest.fixture
def studies(tmp_path: Path, network: SandboxNetwork) -> tuple[Study, Study]:
    """The participants, and whoever wrote what they replied to, quoted, liked or reposted."""
    common: dict[str, Any] = {
        "time_range": DROP,
        "storage": {"path": str(tmp_path / "data")},
        "automation": ON,
    }
    configs = tmp_path / "configs"
    configs.mkdir()
    participants = sandbox_study(
        configs,
        "participants",
        source={"type": "inline", "dids": list(network.dids[:PARTICIPANTS])},
        discovery={},
        derived={"study_user_activity": True},
        **common,
    )
    engaged_posts = {"type": "asset", "backfill": "participants", "asset": "engaged_posts"}
    audience = sandbox_study(
        configs,
        "audience",
        source={"type": "asset", "backfill": "participants", "asset": "engaged_accounts"},
        record_types=[POST],
        filters={POST: {"uris": engaged_posts}},
        derived={
            "posts_used_in_feeds": {"feeds": {"type": "csv", "path": str(tmp_path / "feeds.csv")}},
            "study_user_activity": True,
        },
        **common,
    )
    _write_feeds(network, tmp_path / "feeds.csv")
    return participants, audience


def _write_feeds(network: SandboxNetwork, path: Path) -> None:
    """Write feeds that showed each post of the sandbox two days after it was written, and again 30 days later."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "uri"])
        for did in network.dids:
            for record in network.truth.records(did):
                if record.collection == POST and in_period(record):
                    assert record.created_at is not None
                    for days in (2, 32):
                        writer.writerow([f"{record.created_at + timedelta(days=days):%Y-%m-%d}", record.uri])


def in_period(record: RecordTruth) -> bool:
    return record.created_at is not None and START <= record.created_at <= END


def engaged_with(network: SandboxNetwork) -> tuple[Counter[str], Counter[str]]:
    """Count the participants' interactions by account and by post, from what the sandbox wrote."""
    accounts: Counter[str] = Counter()
    posts: Counter[str] = Counter()
    own = set(network.dids[:PARTICIPANTS])
    for did in own:
        for record in network.truth.records(did):
            if not in_period(record) or record.value is None:
                continue
            for uri in _subjects(record):
                other = uri.removeprefix("at://").split("/")[0]
                if other == did:
                    continue
                accounts.update([other] if other not in own else [])
                posts.update([uri] if f"/{POST}/" in uri else [])
    return accounts, posts


def _subjects(record: RecordTruth) -> Iterator[str]:
    """Yield the AT-URIs that a record is about; odd records have anything there, or nothing."""
    match record.table:
        case "likes" | "reposts":
            found = [_at(record.value, "subject", "uri")]
        case "follows":
            found = [f"at://{_at(record.value, 'subject')}"]
        case "replies":
            found = [_at(record.value, "reply", "parent", "uri"), *_quoted(record)]
        case "posts":
            found = _quoted(record)
        case _:
            found = []
    for uri in found:
        if isinstance(uri, str) and check_did(uri.removeprefix("at://").split("/")[0]) is None:
            yield uri


def _quoted(record: RecordTruth) -> list[Any]:
    return [
        _at(record.value, "embed", "record", "uri") or _at(record.value, "embed", "record", "record", "uri")
    ]


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def check(network: SandboxNetwork, participants: Study, audience: Study) -> None:
    """Hold all that both studies came to against the sandbox's truth."""
    accounts, posts = engaged_with(network)
    assert len(accounts) > 20
    found = pl.read_parquet(participants.root / "engaged_accounts.parquet")
    assert dict(found.select("did", "interactions").iter_rows()) == dict(accounts)
    found = pl.read_parquet(participants.root / "engaged_posts.parquet")
    assert dict(found.select("uri", "interactions").iter_rows()) == dict(posts)

    assert set(pl.read_parquet(audience.root / "source_dids.parquet")["did"]) == accounts.keys()
    wanted = {
        record.uri: record
        for did in network.dids
        if did in accounts
        for record in network.truth.records(did)
        if record.uri in posts and in_period(record) and record.defect is None
    }
    assert len(wanted) > 20
    rows = _tables(audience)
    assert dict(rows.select("uri", "cid").iter_rows()) == {uri: record.cid for uri, record in wanted.items()}
    used = pl.read_parquet(audience.root / "derived/posts_used_in_feeds/*/*.parquet", hive_partitioning=False)
    assert dict(used.select("uri", "used_on").iter_rows()) == {
        uri: (record.created_at + timedelta(days=2)).date()
        for uri, record in wanted.items()
        if record.created_at is not None
        and record.created_at + timedelta(days=2) < datetime(2025, 1, 1, tzinfo=UTC)
    }
    for study, kinds in (
        (participants, ("posts", "replies", "likes", "reposts", "follows", "blocks")),
        (audience, ("posts", "replies")),
    ):
        days = pl.read_parquet(
            study.root / "derived/study_user_activity/*/*.parquet", hive_partitioning=False
        )
        assert _activity(days) == _true_activity(network, study, kinds, wanted if study is audience else None)


def _tables(study: Study) -> pl.DataFrame:
    files = [
        file for table in ("posts", "replies") for file in study.root.glob(f"tables/{table}/*/*.parquet")
    ]
    return pl.concat(pl.read_parquet(file, hive_partitioning=False) for file in files)


def _activity(days: pl.DataFrame) -> dict[tuple[Any, ...], int]:
    return {
        (did, day, kind): number
        for did, day, kind, number in days.unpivot(KINDS, index=["did", "day"]).iter_rows()
        if number
    }


def _true_activity(
    network: SandboxNetwork, study: Study, kinds: tuple[str, ...], only: dict[str, RecordTruth] | None
) -> dict[tuple[Any, ...], int]:
    counted: Counter[tuple[Any, ...]] = Counter()
    for did in pl.read_parquet(study.root / "source_dids.parquet")["did"]:
        for record in network.truth.records(did) if did in network.dids else ():
            if record.table in kinds and in_period(record) and (only is None or record.uri in only):
                assert record.created_at is not None
                counted[did, record.created_at.date(), record.table] += 1
    return dict(counted)


def test_with_one_command_each(
    studies: tuple[Study, Study], network: SandboxNetwork, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for study in studies:
        assert execute(tmp_path / "configs", study.name, instance)
    check(network, *studies)


def test_through_sensors(
    studies: tuple[Study, Study], network: SandboxNetwork, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path / "configs", instance)
    done: list[str] = []
    for _ in range(20):
        jobs = [
            job
            for study in studies
            for name in ("new_dids", "new_hosts", "new_data")
            for job in daemon.perform(daemon.tick(f"{study.name}_{name}"))
        ]
        if not jobs:
            break
        done += jobs
    assert "audience_stage_derive" in done
    check(network, *studies)
    shutil.rmtree(tmp_path / "data")


def test_the_second_study_hangs_on_the_first_in_the_lineage(
    studies: tuple[Study, Study], tmp_path: Path
) -> None:
    daemon_graph = Daemon(tmp_path / "configs", dg.DagsterInstance.ephemeral()).repository.asset_graph
    source = daemon_graph.get(dg.AssetKey(["audience", "source_dids"]))
    assert dg.AssetKey(["participants", "engaged_accounts"]) in source.parent_keys
    records = daemon_graph.get(dg.AssetKey(["audience", "records"]))
    assert dg.AssetKey(["participants", "engaged_posts"]) in records.parent_keys
