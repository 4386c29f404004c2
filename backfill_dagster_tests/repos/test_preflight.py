import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.processing import Processing
from backfill_dagster.errors import StorageError
from backfill_dagster.repos import preflight
from backfill_dagster.repos.packs import LEDGER_SCHEMA
from backfill_dagster.repos.preflight import (
    DEFAULT_REPO_BYTES,
    ENOUGH_TO_KNOW,
    FetchPlan,
    SpaceNeeded,
    ensure_space,
    estimate_space,
)
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stores.local import HEADROOM_BYTES
from backfill_dagster_tests.studies import sandbox_study

PROCESSING = Processing(batch_size=100, pack_megabytes=64, max_concurrent_pds=32, requests_in_flight=4)
MB = 1_000_000
NOW = datetime(2025, 1, 1, tzinfo=UTC)


class Usage(NamedTuple):
    """Of `shutil.disk_usage`, what is asked for."""

    free: int
    total: int = 10**12


def waiting(*hosts: str, known_rev: str | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {"pds_host": hosts, "known_rev": [known_rev] * len(hosts)},
        schema={"pds_host": pl.String(), "known_rev": pl.String()},
    )


def plan(waiting: pl.DataFrame, *ledgers: pl.DataFrame) -> FetchPlan:
    """Return the plan of a fetch, put together of two halves."""
    made, half = FetchPlan(), waiting.height // 2
    made.add(waiting.head(half), pl.concat([LEDGER_SCHEMA.to_frame(), *ledgers[1:]]))
    made.add(waiting.slice(half), ledgers[0])
    return made


def ledger(*sizes: int, outcome: str = "complete") -> pl.DataFrame:
    rows = [
        {"did": f"did:plc:{number}", "outcome": outcome, "bytes_received": size, "fetched_at": NOW}
        for number, size in enumerate(sizes)
    ]
    return pl.DataFrame(rows, schema=LEDGER_SCHEMA)


def test_what_was_fetched_says_how_large_the_rest_will_be() -> None:
    known = ledger(*[MB, 3 * MB] * ENOUGH_TO_KNOW), ledger(50 * MB, outcome="failed")
    needed = estimate_space(plan(waiting(*["a"] * 1000), *known), PROCESSING)
    assert (needed.is_measured, needed.repo_bytes) == (True, 2 * MB)
    assert needed.stored == 1000 * 2 * MB * preflight.STORED_PER_BYTE
    assert needed.total == needed.stored + needed.scratch


def test_too_few_to_know_count_as_none() -> None:
    for known in (ledger(), ledger(*[900 * MB] * (ENOUGH_TO_KNOW - 1)), ledger(*[1] * 99, outcome="failed")):
        needed = estimate_space(plan(waiting("a", "b"), known), PROCESSING)
        assert (needed.is_measured, needed.repo_bytes) == (False, DEFAULT_REPO_BYTES)


def test_accounts_that_are_stored_already_cost_nothing() -> None:
    known = ledger(*[MB] * ENOUGH_TO_KNOW)
    needed = estimate_space(plan(waiting(*["a"] * 500, known_rev="3k"), known), PROCESSING)
    assert (needed.accounts, needed.total) == (0, 0)


def test_scratch_is_bounded_by_hosts_at_work_and_by_what_there_is_to_fetch() -> None:
    known = ledger(*[MB] * ENOUGH_TO_KNOW)
    one = estimate_space(plan(waiting("a"), known), PROCESSING)
    assert one.scratch == MB
    many = estimate_space(
        plan(waiting(*[f"host-{number % 300}" for number in range(90_000)]), known), PROCESSING
    )
    per_host = preflight.PACKS_PER_HOST * 64 * 2**20 + 4 * MB
    assert many.scratch == 32 * per_host


def test_what_does_not_fit_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = SpaceNeeded(accounts=1500, repo_bytes=2e6, is_measured=True, stored=6_000 * MB, scratch=500 * MB)
    free = 6_499 * MB
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free + HEADROOM_BYTES))
    with pytest.raises(StorageError) as raised:
        ensure_space(StudyStorage(tmp_path), needed)
    told = str(raised.value)
    assert (
        f"{tmp_path} has 6.5 GB free, and the fetch needs about 6.5 GB: 1,500 repositories of 2.0 MB" in told
    )
    assert "free some space" in told
    free += MB
    with caplog.at_level("INFO"):
        ensure_space(StudyStorage(tmp_path), needed)
    assert "The fetch needs about 6.5 GB" in caplog.text
    assert "6.5 GB are free" in caplog.text


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    needed = SpaceNeeded(accounts=1, repo_bytes=1, is_measured=False, stored=1, scratch=1)
    with pytest.raises(StorageError, match="nowhere cannot be read"):
        ensure_space(StudyStorage(tmp_path / "nowhere"), needed)


def test_a_fetch_that_does_not_fit_asks_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = sandbox_study(tmp_path, settings=SandboxSettings(seed=3, accounts=30, hosts=1, records=1))
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000 + HEADROOM_BYTES))
    with pytest.raises(StorageError, match=r"has 1\.0 kB free, and the fetch needs about"):
        pipeline.fetch_repos(study)
    assert not (study.root / "repos").exists()
