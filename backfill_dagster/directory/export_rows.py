"""Fills the directory from the copy of the PLC directory's export: many accounts without a request for each."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.directory.documents import (
    NO_SIGNING_KEY,
    DirectoryState,
    LookupFailedError,
    pds_endpoint,
)
from backfill_dagster.directory.export_reader import ExportReader, young_enough
from backfill_dagster.directory.plc_operations import Effect
from backfill_dagster.errors import DirectoryUnreachableError
from backfill_dagster.network.patience import RunOverError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from backfill_dagster.config.network import Network
    from backfill_dagster.connections import Connections

logger = logging.getLogger(__name__)

# What a row's `resolved_by` says of one that comes from the export.
PLC_EXPORT = "plc_export"
_ENDPOINTS_SCHEMA = pl.Schema(
    {
        "pds": pl.String,
        "origin": pl.String,
        "pds_host": pl.String,
        "pds_state": pl.String,
        "pds_reason": pl.String,
    }
)


async def rows_from_export(dids: pl.Series, connections: Connections) -> AsyncIterator[pl.DataFrame]:
    """Yield directory rows (DIRECTORY_SCHEMA) of those of these DIDs that the export tells of, in parts and no order.

    The export is brought up to date first. There are none if the settings do not want it used for so many accounts, or
    if it cannot be had as young as they want it.
    """
    network = connections.network
    at_plc = dids.filter(dids.str.starts_with("did:plc:"))
    if not _wants_export(network, len(at_plc)):
        return
    needed = young_enough(min(network.plc_export.max_age_hours, network.directory_max_age_hours))
    reader = ExportReader(connections)
    try:
        reached = await reader.bring_up_to(needed)
    except (DirectoryUnreachableError, RunOverError) as error:
        logger.warning("accounts are looked up one by one: %s", error)
        return
    if reached.until < needed:
        logger.warning(
            "accounts are looked up one by one: the PLC directory's export can only be had until %s",
            reached.until,
        )
        return
    parts, known = reader.copy.latest(at_plc), 0
    # Of a large copy this takes a minute, in which requests of others go on.
    while (operations := await asyncio.to_thread(next, parts, None)) is not None:
        rows = directory_rows(operations, reached.until)
        known += rows.height
        yield rows
    logger.info("%s accounts are known from the PLC directory's export", f"{known:,}")


def _wants_export(network: Network, accounts: int) -> bool:
    match network.plc_export.use:
        case "never":
            return False
        case "always":
            return accounts > 0
        case "auto":
            return accounts >= network.plc_export.at_least


def directory_rows(operations: pl.DataFrame, until: datetime) -> pl.DataFrame:
    """Write what a lookup at the time `until` would have come to after these operations, the latest of their DIDs.

    An operation in no known form gives none.
    """
    known = operations.filter(pl.col("effect") != Effect.UNKNOWN.value)
    tombstoned = pl.col("effect") == Effect.TOMBSTONE.value
    resolved = ~tombstoned & pl.col("pds_state").is_null()
    no_key = pl.when(pl.col("key_multibase").is_null()).then(pl.lit(NO_SIGNING_KEY))
    return known.join(_endpoints(known["pds"]), on="pds", how="left", nulls_equal=True).select(
        "did",
        handle=pl.when(resolved).then("handle"),
        pds=pl.when(resolved).then("origin"),
        pds_host=pl.when(resolved).then("pds_host"),
        key_type=pl.when(resolved & pl.col("key_multibase").is_not_null()).then(pl.lit("Multikey")),
        key_multibase=pl.when(resolved).then("key_multibase"),
        state=pl.when(tombstoned)
        .then(pl.lit(DirectoryState.TOMBSTONED.value))
        .otherwise(pl.coalesce("pds_state", pl.lit(DirectoryState.RESOLVED.value))),
        reason=pl.when(tombstoned)
        .then(pl.lit("the last of its operations is a tombstone"))
        .otherwise(pl.coalesce("pds_reason", no_key)),
        resolved_at=pl.lit(until, pl.Datetime("us", "UTC")),
        resolved_by=pl.lit(PLC_EXPORT),
    )


def _endpoints(claimed: pl.Series) -> pl.DataFrame:
    """Read each distinct endpoint once: accounts are many, and their servers few."""
    rows: list[tuple[str | None, ...]] = []
    for pds in claimed.unique():
        try:
            endpoint = pds_endpoint(pds)
        except LookupFailedError as error:
            rows.append((pds, None, None, error.state.value, error.reason))
        else:
            rows.append((pds, endpoint.origin, endpoint.host, None, None))
    return pl.DataFrame(rows, schema=_ENDPOINTS_SCHEMA, orient="row")
