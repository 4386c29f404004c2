"""Reads sources that need servers: those of a sandbox, or one on loopback that answers just what a test wants."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.config.network import Network, SandboxSettings
from backfill_dagster.config.processing import Processing, Storage
from backfill_dagster.config.sources import InlineSource
from backfill_dagster.config.study import Study
from backfill_dagster.connections import open_connections
from backfill_dagster.dids.entries import BATCH_ROWS, ENTRIES_SCHEMA, EntrySource, SourceAccess
from backfill_dagster_tests.studies import sandbox_study

if TYPE_CHECKING:
    from pathlib import Path

# A population of its own: these tests switch faults on and edit accounts.
SETTINGS = SandboxSettings(seed=41, accounts=60, hosts=3, records=5)


def study_of_sandbox(folder: Path, **parts: Any) -> Study:
    """Make a study in the sandbox of these tests; times are short."""
    processing = {"max_retries": 2, "requests_per_second": 500, "workers": 1}
    return sandbox_study(folder, settings=SETTINGS, processing=processing, **parts)


def study_of_server(folder: Path, address: str, **network: Any) -> Study:
    """Make a study for which the server at `address` is the PLC directory, too."""
    settings = {
        "plc_url": f"http://{address}",
        "plc_requests_per_second": 1000,
        "allow_private_addresses": True,
        "read_timeout_seconds": 2,
        "retry_base_seconds": 0.01,
        **network,
    }
    return Study(
        name="study",
        source=InlineSource(type="inline", dids=("did:plc:none",)),
        storage=Storage(path=folder / "data"),
        processing=Processing(max_retries=2, requests_per_second=500, workers=1),
        network=Network.model_validate(settings),
    )


async def read_batches(source: EntrySource, study: Study) -> list[pl.DataFrame]:
    """Return a source's batches, after a look at their form."""
    scratch = study.root.parent / "scratch_of_test"
    scratch.mkdir(parents=True, exist_ok=True)
    async with open_connections(study, None, study.processing) as connections:
        access = SourceAccess(scratch, connections)
        batches = [batch async for batch in source.entries(access)]
    assert all(batch.schema == ENTRIES_SCHEMA and 0 < batch.height <= BATCH_ROWS for batch in batches)
    return batches


def read(source: EntrySource, study: Study) -> list[str | None]:
    """Return the entries of a source in which each stands for itself."""
    return joined(asyncio.run(read_batches(source, study)))


def joined(batches: list[pl.DataFrame]) -> list[str | None]:
    entries = pl.concat([ENTRIES_SCHEMA.to_frame(), *batches])
    assert entries["reason"].null_count() == entries.height
    assert entries["input"].equals(entries["entry"])
    return entries["entry"].to_list()
