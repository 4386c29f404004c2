"""How many records of each collection and age a pack's accounts have: taken once of a pack, which never changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster.survivorship.ages import ages_in_days, bin_of
from backfill_dagster.survivorship.pack_contents import pack_contents, read_keys
from backfill_dagster.survivorship.stored import is_made_of, of_pack, store

if TYPE_CHECKING:
    from backfill_dagster.stores.location import Location

INVENTORY_COLUMNS = (
    Column("did", pl.String(), "DID of the account.", required=True),
    Column("collection", pl.String(), "Collection of its records.", required=True),
    Column("age", pl.Int32(), "Number of the class of their age when they were fetched; null if not known."),
    Column("records", pl.UInt32(), "How many there are.", required=True),
)
INVENTORY_SCHEMA = schema_of(INVENTORY_COLUMNS)
KIND = "inventories"
# Raised whenever the same pack would have another inventory.
_VERSION = "1"


def inventory_key(pds_host: str, pack: str) -> str:
    """Return where the inventory of a pack is stored."""
    return of_pack(KIND, pds_host, pack)


def has_inventory(storage: StudyStorage, pds_host: str, pack: str) -> bool:
    """Tell whether a pack's inventory has been taken."""
    return is_made_of(storage, inventory_key(pds_host, pack), _VERSION)


def take_inventory(root: Location, pds_host: str, pack: str) -> None:
    """Count the records of a pack's whole accounts and store it; reads no record. Raises StorageError."""
    storage = StudyStorage(root)
    counted = [INVENTORY_SCHEMA.to_frame()]
    contents = pack_contents(storage, pds_host, pack)
    fetched = contents.accounts.select("did", "fetched_at")
    for rows in read_keys(storage, contents.blocks, fetched["did"], ("did", "collection", "rkey")):
        seen = rows.join(fetched, on="did", how="left", maintain_order="left")
        ages = ages_in_days(seen["rkey"], seen["fetched_at"])
        counts = (
            rows.with_columns(age=bin_of(ages)).group_by("did", "collection", "age").agg(records=pl.len())
        )
        counted.append(counts.select(INVENTORY_SCHEMA.names()).cast(INVENTORY_SCHEMA))
    kinds = ["did", "collection", "age"]
    total = pl.concat(counted).group_by(kinds).agg(pl.col("records").sum()).sort(kinds)
    store(storage, inventory_key(pds_host, pack), total.cast(INVENTORY_SCHEMA), _VERSION)
