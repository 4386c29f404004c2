"""From a study's source to the list of accounts to collect."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.sources import describe, read_batches
from backfill_dagster.dids.syntax import DidRejection, rejection_of, stripped
from backfill_dagster.errors import SourceError
from backfill_dagster.purge.tombstones import Tombstones

if TYPE_CHECKING:
    from backfill_dagster.config import Source

DIDS_SCHEMA = pl.Schema({"did": pl.String})
REJECTS_SCHEMA = pl.Schema({"position": pl.Int64, "input": pl.String, "reason": pl.String})
MAX_INPUT_SHOWN = 200


@dataclass(frozen=True, slots=True)
class CollectedDids:
    """What a source came to: `given` entries, of which each is a row of `dids` or of `rejects`.

    `dids` (DIDS_SCHEMA) holds each DID once, in the order in which it was first seen. `rejects`
    (REJECTS_SCHEMA) holds the other entries in their order: their position counted from 0, their text (its
    first 200 characters; null for a DID that the study has purged) and why they were left out, a value of
    DidRejection. Empty lines and comments of a text file are no entries.
    """

    dids: pl.DataFrame
    rejects: pl.DataFrame
    given: int


_NOTHING_PURGED = Tombstones()


def collect_dids(source: Source, tombstones: Tombstones = _NOTHING_PURGED) -> CollectedDids:
    """Read a source and sort its entries into DIDs and rejects; what has a tombstone is among the latter.

    Raises SourceError if the source cannot be read, or if it holds no DID at all.
    """
    valid: list[pl.DataFrame] = []
    invalid: list[pl.DataFrame] = []
    given = 0
    for entries in read_batches(source):
        batch = entries.to_frame("input").select(
            position=pl.int_range(pl.len(), dtype=pl.Int64) + given,
            input=stripped(pl.col("input")),
            reason=rejection_of(pl.col("input")),
        )
        batch = tombstones.withhold(batch)
        given += batch.height
        valid.append(batch.filter(pl.col("reason").is_null()).select("position", did="input"))
        invalid.append(_shown(batch.filter(pl.col("reason").is_not_null())))
    accepted = _concat(valid, pl.Schema({"position": pl.Int64, "did": pl.String}))
    # A DID compares as bytes; two spellings of one host in did:web are two DIDs.
    accepted = accepted.with_columns(first=pl.col("did").is_first_distinct())
    repeated = _shown(
        accepted.filter(~pl.col("first")).select(
            "position", input="did", reason=pl.lit(DidRejection.DUPLICATE.value)
        )
    )
    collected = CollectedDids(
        dids=accepted.filter("first").select("did"),
        rejects=_concat([*invalid, repeated], REJECTS_SCHEMA).sort("position"),
        given=given,
    )
    if collected.dids.is_empty():
        raise SourceError(f"{describe(source)}: {_why_empty(collected)}")
    return collected


def _shown(rejects: pl.DataFrame) -> pl.DataFrame:
    return rejects.with_columns(pl.col("input").str.head(MAX_INPUT_SHOWN))


def _concat(frames: list[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
    return pl.concat([schema.to_frame(), *frames])


def _why_empty(collected: CollectedDids) -> str:
    if collected.given == 0:
        return "holds no DIDs: it is empty"
    reasons = Counter(collected.rejects["reason"].to_list())
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    first = next(iter(collected.rejects["input"].drop_nulls()), None)
    if first is None:
        return f"holds no DIDs to collect: all of its {collected.given:,} entries are purged"
    return (
        f"holds no DIDs: none of its {collected.given:,} entries is one ({counts}). The first is {first!r}; "
        "a DID looks like did:plc:ewvi7nxzyoun6zhxrhs64oiz"
    )
