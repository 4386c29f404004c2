"""The keys and CIDs of a pack's records: what can be told of them without a look at what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.repos.outcomes import NOT_THERE, Outcome
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.storage import partition_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill_dagster.storage import StudyStorage

RECORD = ("did", "collection", "rkey")
KEYS_SCHEMA = pl.Schema(
    {"did": pl.String(), "collection": pl.String(), "rkey": pl.String(), "cid": pl.Binary()}
)


@dataclass(frozen=True, slots=True)
class PackContents:
    """A pack by the keys of its blocks files, its whole accounts, and what was listed and could not be taken.

    `accounts` has `did, fetched_at, stored`: how many records each has, less those that a purge took. `untold` (RECORD)
    are the records of which it is not known what they are.
    """

    blocks: tuple[str, ...]
    accounts: pl.DataFrame
    untold: pl.DataFrame


def pack_key(pds_host: str, pack: str) -> str:
    """Return where a pack is stored."""
    return f"repos/{partition_folder(pds_host)}/{pack}.parquet"


def pack_contents(storage: StudyStorage, pds_host: str, pack: str) -> PackContents:
    """Read what a pack says of its whole accounts; raises StorageError."""
    key = pack_key(pds_host, pack)
    columns = ("did", "outcome", "fetched_at", "records", "purged", "not_taken", "blocks_files")
    [rows] = storage.collect([storage.scan([key], PACK_SCHEMA).select(columns)], [key])
    files = rows["blocks_files"].to_list()[0] or [] if rows.height else []
    folder = key.rpartition("/")[0]
    whole = rows.filter(pl.col("outcome") == Outcome.COMPLETE.value)
    left = (
        whole.select("did", "not_taken")
        .explode("not_taken")
        .drop_nulls("not_taken")
        .select("did", pl.col("not_taken").struct.unnest())
    )
    untold = left.filter(~pl.col("reason").is_in([reason.value for reason in NOT_THERE]))
    by_account = untold.group_by("did").agg(untold=pl.len().cast(pl.Int64))
    stored = pl.col("records") - pl.col("purged").fill_null(0) - pl.col("untold").fill_null(0)
    return PackContents(
        blocks=tuple(f"{folder}/{file['name']}" for file in files),
        accounts=whole.join(by_account, on="did", how="left", maintain_order="left").select(
            "did", "fetched_at", stored=stored
        ),
        untold=untold.select(RECORD),
    )


def read_keys(
    storage: StudyStorage, blocks: Sequence[str], dids: pl.Series, columns: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """Yield these columns (of KEYS_SCHEMA) of the records of some accounts, file by file; raises StorageError."""
    for key in blocks:
        rows = storage.scan([key], KEYS_SCHEMA).filter(pl.col("did").is_in(dids.implode())).select(columns)
        yield storage.collect([rows], [key])[0]
