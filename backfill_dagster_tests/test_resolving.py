"""Stage 2 with accounts in one range and in many: what is known, what is due, and what an interruption leaves."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.directory.evidence import DOCUMENTS_FOLDER
from backfill_dagster.directory.history import ANSWERS_SCHEMA
from backfill_dagster.directory.resolve import DIRECTORY_SCHEMA, look_up
from backfill_dagster.errors import StorageError
from backfill_dagster.resolving import DirectorySummary
from backfill_dagster.sandbox.faults import ServerError
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import PLC_HOST, Role
from backfill_dagster.storage import StoredFile, StudyStorage
from backfill_dagster.study_files import DIRECTORY_HISTORY_KEY, DIRECTORY_KEY, UNFINISHED_DIRECTORY_FOLDER
from backfill_dagster_tests.studies import resolved_directory, sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=12, accounts=40, hosts=3, records=2)
QUICK = {"max_retries": 0, "requests_per_second": 500, "workers": 1}
NOW = datetime.now(UTC)
LEFT = "did:plc:" + "k" * 24


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill_dagster.directory.resolver._now", lambda: NOW)
    monkeypatch.setattr("backfill_dagster.directory.resolve.CHECKPOINT_ROWS", 8)
    monkeypatch.setattr("backfill_dagster.resolving._PARTS_AT_ONCE", 2)


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    found = sandbox(SETTINGS)
    yield found
    found.faults.clear()


def normal(network: SandboxNetwork) -> list[str]:
    return [account.did for account in network.truth.accounts() if account.role is Role.NORMAL]


def row(did: str, age: timedelta, state: str = "resolved", host: str | None = "old.test") -> dict[str, Any]:
    told = {"handle": host and f"a.{host}", "pds": host and f"https://{host}", "pds_host": host}
    return {"did": did, "state": state, "resolved_at": NOW - age, "resolved_by": "lookup", **told}


def prepared(folder: Path, network: SandboxNetwork) -> Study:
    """A study with a directory of days ago, and what two runs left that were interrupted since."""
    folder.mkdir(exist_ok=True)
    study = sandbox_study(folder, settings=SETTINGS, processing=QUICK)
    pipeline.collect_source(study)
    hour, day = timedelta(hours=1), timedelta(days=1)
    fresh, aged, failed, answered, vain, overtaken, *_ = normal(network)
    known = [
        row(fresh, hour),
        row(aged, 3 * day),
        row(failed, hour, "unreachable", None),
        row(answered, 3 * day),
        row(vain, 3 * day),
        row(overtaken, hour, host="new.test"),
        row(LEFT, 9 * day),
    ]
    parts = [
        [row(answered, 2 * hour, "tombstoned", None), row(aged, hour, "server_error", None)],
        [row(overtaken, 5 * hour), row(vain, 2 * day, host="later.test")],
    ]
    storage = StudyStorage(study.location)
    directory = pl.DataFrame(known, schema=DIRECTORY_SCHEMA).with_columns(
        state_since=pl.col("resolved_at") - day
    )
    storage.write(DIRECTORY_KEY, directory)
    answer = {"did": fresh, "state": "resolved", "handle": "a.old.test", "pds_host": "old.test"}
    answers = [{**answer, "first_seen": NOW - 9 * day, "last_seen": None}]
    storage.write(DIRECTORY_HISTORY_KEY, pl.DataFrame(answers, schema=ANSWERS_SCHEMA))
    for number, part in enumerate(parts):
        key = f"{UNFINISHED_DIRECTORY_FOLDER}/part-{number:05d}.parquet"
        storage.write(key, pl.DataFrame(part, schema=DIRECTORY_SCHEMA))
    network.faults.set_host(PLC_HOST, ServerError(500), paths=[f"/{vain}"])
    network.requests.clear()
    return study


def asked(network: SandboxNetwork) -> set[str]:
    return {one.path.strip("/") for one in network.requests.all() if one.host == PLC_HOST}


def stored(study: Study) -> dict[str, pl.DataFrame]:
    storage = StudyStorage(study.location)
    documents = pl.concat(map(storage.read, storage.keys(DOCUMENTS_FOLDER))).drop("received_at")
    return {
        **{key: storage.read(key) for key in (DIRECTORY_KEY, DIRECTORY_HISTORY_KEY)},
        DOCUMENTS_FOLDER: documents.sort("did", "kind", "sha256"),
    }


def are_equal(one: dict[str, pl.DataFrame], other: dict[str, pl.DataFrame]) -> bool:
    return all(one[name].equals(other[name]) for name in one)


def in_many_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backfill_dagster.repos.ledger_lots.ACCOUNTS_AT_ONCE", 6)


def test_who_is_asked_and_what_is_made_of_what_was_known(network: SandboxNetwork, tmp_path: Path) -> None:
    study = prepared(tmp_path, network)
    fresh, aged, failed, answered, vain, overtaken, *others = normal(network)

    directory = resolved_directory(study)

    assert asked(network) >= {aged, failed, vain, *others}
    assert not asked(network) & {fresh, answered, overtaken, LEFT}
    assert directory["did"].to_list() == sorted({*network.dids, LEFT})
    rows = {one["did"]: one for one in directory.iter_rows(named=True)}
    hosts = {did: rows[did]["pds_host"] for did in (fresh, answered, vain, overtaken, LEFT)}
    assert hosts == dict(zip(hosts, ["old.test", None, "later.test", "new.test", "old.test"], strict=True))
    assert rows[answered]["state"] == "tombstoned"
    assert rows[vain]["reason"].startswith("looked up again in vain: server_error")
    assert rows[fresh]["state_since"] == NOW - timedelta(hours=25)
    assert rows[aged]["resolved_at"] == rows[failed]["resolved_at"] == rows[failed]["state_since"] == NOW
    assert {rows[did]["state"] for did in (aged, failed)} == {"resolved"}
    assert StudyStorage(study.location).keys(UNFINISHED_DIRECTORY_FOLDER) == []


def test_by_many_ranges_it_is_as_by_one(
    network: SandboxNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, many = (prepared(tmp_path / name, network) for name in ("one", "many"))
    summary = pipeline.resolve_accounts(one)
    in_many_ranges(monkeypatch)

    assert pipeline.resolve_accounts(many) == summary == summary_of(one)
    assert are_equal(stored(one), stored(many))
    assert pq.read_metadata(one.root / DIRECTORY_KEY).num_row_groups == 1
    assert pq.read_metadata(many.root / DIRECTORY_KEY).num_row_groups > 4

    # Nothing is due now but what failed, and that says nothing new.
    files = [(many.root / key).read_bytes() for key in (DIRECTORY_KEY, DIRECTORY_HISTORY_KEY)]
    written = (many.root / DIRECTORY_HISTORY_KEY).stat().st_mtime_ns
    pipeline.resolve_accounts(many)
    assert [(many.root / key).read_bytes() for key in (DIRECTORY_KEY, DIRECTORY_HISTORY_KEY)] == files
    assert (many.root / DIRECTORY_HISTORY_KEY).stat().st_mtime_ns == written

    # A single answer of the first of all ranges is told as well.
    history, first = stored(many)[DIRECTORY_HISTORY_KEY], min(normal(network)[6:])
    StudyStorage(many.location).write(DIRECTORY_HISTORY_KEY, history.filter(pl.col("did") != first))
    pipeline.resolve_accounts(many)
    assert stored(many)[DIRECTORY_HISTORY_KEY].equals(history)


def summary_of(study: Study) -> DirectorySummary:
    """Sum the stored directory up whole; the version is of hashes of its rows, as text and sorted by number."""
    directory = StudyStorage(study.location).read(DIRECTORY_KEY)
    hashes = sorted(directory.select(pl.struct("did", "pds", "state").hash(seed=0)).to_series())
    version = hashlib.sha256("".join(f"{one}\n" for one in hashes).encode()).hexdigest()
    hosts = Counter(directory["pds_host"].drop_nulls())
    return DirectorySummary(Counter(directory["state"]), hosts, version)


@pytest.mark.parametrize("lost", [DIRECTORY_HISTORY_KEY, DIRECTORY_KEY])
def test_what_was_looked_up_stays_until_the_directory_is_written(
    network: SandboxNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    in_many_ranges(monkeypatch)
    undisturbed, study = (prepared(tmp_path / name, network) for name in ("undisturbed", "study"))
    pipeline.resolve_accounts(undisturbed)
    write = StudyStorage.write_parts

    def write_others(self: StudyStorage, key: str, *parts: Any, **named: Any) -> StoredFile:
        if key == lost:
            raise StorageError("the disk is full")
        return write(self, key, *parts, **named)

    with monkeypatch.context() as patched:
        patched.setattr(StudyStorage, "write_parts", write_others)
        with pytest.raises(StorageError, match="disk is full"):
            pipeline.resolve_accounts(study)
    network.requests.clear()
    pipeline.resolve_accounts(study)

    failed = stored(study)[DIRECTORY_KEY].filter(pl.col("reason").str.contains("server_error"))["did"]
    assert asked(network) == set(failed) == {normal(network)[4]}
    assert are_equal(stored(undisturbed), stored(study))
    assert not list((study.root / ".scratch").iterdir())


def test_another_run_that_ends_first_or_overwrites_a_part_costs_nobody(
    tmp_path: Path, network: SandboxNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of the one stage share the study: what a run has looked up is its own, whatever becomes of the parts."""
    study = sandbox_study(tmp_path, settings=SETTINGS, processing=QUICK)
    pipeline.collect_source(study)
    storage = StudyStorage(study.location)

    async def disturbed(*given: Any, **named: Any) -> None:
        await look_up(*given, **named)
        first, *others = storage.keys(UNFINISHED_DIRECTORY_FOLDER)
        storage.write(first, storage.read(others[-1]))
        for key in others:
            storage.remove(key)

    monkeypatch.setattr("backfill_dagster.resolving.look_up", disturbed)
    pipeline.resolve_accounts(study)
    dids = storage.read(DIRECTORY_KEY)["did"]
    assert len(dids) == dids.n_unique() == SETTINGS.accounts
