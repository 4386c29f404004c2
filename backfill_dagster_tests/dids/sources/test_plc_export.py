"""Accounts by the date of their creation, from the export."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from backfill_dagster.config.sources import PlcExportSource
from backfill_dagster.dids.sources.plc_export import PlcExportEntries
from backfill_dagster.directory import export_copy, export_reader
from backfill_dagster.errors import SourceError
from backfill_dagster.sandbox.account_state import first_state
from backfill_dagster.sandbox.documents import is_in_plc
from backfill_dagster.sandbox.faults import ServerError
from backfill_dagster.sandbox.population import PLC_HOST
from backfill_dagster.sandbox.written import instant_of
from backfill_dagster_tests.dids.sources.asking_servers import read, study_of_sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster.sandbox.network import SandboxNetwork

EXPORT = "/export"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_reader, "PAGE", 10)
    monkeypatch.setattr(export_copy, "FILE_ROWS", 25)
    monkeypatch.setattr(export_reader, "FILE_ROWS", 25)


def source(since: Any = None, to: Any = None) -> PlcExportEntries:
    config = PlcExportSource(type="plc_export", created_from=since, created_to=to)
    return PlcExportEntries(config, "backfill.source")


def born(network: SandboxNetwork) -> dict[str, datetime]:
    """When each account in the directory was created, oldest first."""
    accounts = (account for account in network.population.accounts if is_in_plc(account))
    times = {account.did: instant_of(first_state(account).identities[0].since) for account in accounts}
    return dict(sorted(times.items(), key=lambda item: item[1]))


def test_everyone_in_the_order_of_creation(network: SandboxNetwork, tmp_path: Path) -> None:
    ended = next(account.did for account in network.truth.accounts() if account.is_complete)
    network.edit.change_handle(ended, "other.test")
    network.edit.tombstone(ended)

    assert read(source(), study_of_sandbox(tmp_path)) == list(born(network))


def test_a_period_has_both_its_ends(network: SandboxNetwork, tmp_path: Path) -> None:
    times = list(born(network).values())
    since, to = times[8], times[30]

    entries = read(source(since, to), study_of_sandbox(tmp_path))

    assert entries == list(born(network))[8:31]
    # No more is read than that takes, and for an earlier period nothing.
    pages = network.requests.count(path=EXPORT)
    assert pages < 6
    assert read(source(None, times[5]), study_of_sandbox(tmp_path)) == list(born(network))[:6]
    assert network.requests.count(path=EXPORT) == pages
    assert read(source(times[50]), study_of_sandbox(tmp_path)) == list(born(network))[50:]
    assert network.requests.count(path=EXPORT) > pages


def test_dates_are_days(network: SandboxNetwork, tmp_path: Path) -> None:
    days = sorted({time.date() for time in born(network).values()})

    entries = read(source(str(days[1]), str(days[2])), study_of_sandbox(tmp_path))

    assert entries == [did for did, time in born(network).items() if time.date() in days[1:3]]


def test_an_export_that_cannot_be_had_is_an_error(network: SandboxNetwork, tmp_path: Path) -> None:
    network.faults.set_host(PLC_HOST, ServerError(500), paths=[EXPORT])

    with pytest.raises(SourceError, match=r"backfill\.source: .*HTTP 500.*mirror"):
        read(source(), study_of_sandbox(tmp_path))


def test_an_export_that_ends_too_early_is_an_error(network: SandboxNetwork, tmp_path: Path) -> None:
    """A mirror stands in, and cannot say what came after its last operation."""
    study = study_of_sandbox(tmp_path, network={"plc_export": {"mirrors": [f"http://{network.hosts[0]}"]}})
    read(source(), study)
    for file in tmp_path.rglob("operations/*.parquet"):
        age(file)
    network.faults.set_host(PLC_HOST, ServerError(500), paths=[EXPORT])

    with pytest.raises(SourceError):
        read(source(), study)
    # What a period before needs is there.
    end = list(born(network).values())[20]
    assert read(source(None, end), study) == list(born(network))[:21]


def age(file: Path) -> None:
    rows, reached = pl.read_parquet(file), json.loads(pl.read_parquet_metadata(file)["reached"])
    reached["until"] = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    rows.write_parquet(file, metadata={"reached": json.dumps(reached)})
