"""What changed between an account's snapshots: of the accounts of one pack, each against its snapshot before.

A version of a record is its key with a CID. Of all versions on both sides only hashes are held, eight bytes each, and
those rows are read whose version stands on one side alone: memory grows with what has changed. Two versions of the same
hash, whose chance is one in some billions, would hide a change. No record is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.storage import StudyStorage
from backfill_dagster.survivorship.pack_contents import (
    KEYS_SCHEMA,
    RECORD,
    PackContents,
    pack_contents,
    read_keys,
)
from backfill_dagster.survivorship.stored import is_made_of, of_pack, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backfill_dagster.stores.location import Location

EVENT_COLUMNS = (
    Column("did", pl.String(), "DID of the account.", required=True),
    Column("collection", pl.String(), "Collection of the record.", required=True),
    Column("rkey", pl.String(), "Key of the record within its collection.", required=True),
    Column("cid", pl.Binary(), "CID of the version, as its 36 bytes.", required=True),
    Column(
        "stood_before",
        pl.Boolean(),
        "Whether the version stands in the snapshot before and no more; if not, it is new in the pack's own.",
        required=True,
    ),
    Column(
        "changed", pl.Boolean(), "Whether the key has a version on the other side as well.", required=True
    ),
)
EVENTS_SCHEMA = schema_of(EVENT_COLUMNS)
KIND = "comparisons"
UNACCOUNTED = "unaccounted"
# Raised whenever the same packs would compare otherwise.
_VERSION = "1"
_VERSION_OF_RECORD = pl.struct(*RECORD, "cid").hash(seed=20240927)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A pack, and the packs (host, name) in which its accounts' snapshots before stand, each with these accounts."""

    pds_host: str
    pack: str
    before: tuple[tuple[str, str, tuple[str, ...]], ...]

    @property
    def key(self) -> str:
        """Where it is stored."""
        return comparison_key(self.pds_host, self.pack)

    @property
    def identity(self) -> str:
        """What it is made of."""
        told = json.dumps([_VERSION, self.pack, self.before])
        return hashlib.sha256(told.encode()).hexdigest()[:24]


def comparisons(chains: pl.DataFrame) -> list[Comparison]:
    """Return what there is to compare among these snapshots (CHAIN_SCHEMA), sorted."""
    own, before = ["pds_host", "pack"], ["before_host", "before_pack"]
    grouped = (
        chains.drop_nulls("before_pack")
        .group_by(*own, *before)
        .agg(pl.col("did").sort())
        .sort(*own, *before)
        .group_by(own, maintain_order=True)
        .agg(*before, "did")
    )
    return [
        Comparison(host, pack, tuple((*of, tuple(dids)) for *of, dids in zip(*told, strict=True)))
        for host, pack, *told in grouped.iter_rows()
    ]


def comparison_key(pds_host: str, pack: str) -> str:
    """Return where the comparison of a pack is stored."""
    return of_pack(KIND, pds_host, pack)


def is_compared(storage: StudyStorage, wanted: Comparison) -> bool:
    """Tell whether this comparison is stored."""
    return is_made_of(storage, wanted.key, wanted.identity)


def compare(root: Location, wanted: Comparison) -> None:
    """Compare the accounts of a pack with their snapshots before, and store what differs. Raises StorageError."""
    storage = StudyStorage(root)
    now = pack_contents(storage, wanted.pds_host, wanted.pack)
    found, unaccounted = [EVENTS_SCHEMA.to_frame()], 0
    for host, pack, dids in wanted.before:
        events, wrong = _differences(storage, pack_contents(storage, host, pack), now, pl.Series("did", dids))
        found.append(events)
        unaccounted += wrong
    events = pl.concat(found).sort(*RECORD, "stood_before", "cid")
    store(storage, wanted.key, events, wanted.identity, **{UNACCOUNTED: str(unaccounted)})


def _differences(
    storage: StudyStorage, before: PackContents, now: PackContents, dids: pl.Series
) -> tuple[pl.DataFrame, int]:
    """Return what differs (EVENTS_SCHEMA), and for how many accounts the sums do not hold."""
    sides = (before, now)
    versions = [_versions(storage, side.blocks, dids) for side in sides]
    alone = [np.setdiff1d(versions[0], versions[1]), np.setdiff1d(versions[1], versions[0])]
    rows = [
        _rows(storage, side.blocks, dids, hashes).with_columns(stood_before=pl.lit(side is before))
        for side, hashes in zip(sides, alone, strict=True)
    ]
    unaccounted = _unaccounted(before, now, dids, *rows)
    both = pl.concat(rows)
    # Of what a host listed and could not be taken nobody knows whether it has changed.
    untold = pl.concat([before.untold, now.untold])
    told = both.join(untold, on=RECORD, how="anti", maintain_order="left")
    ended = told.filter("stood_before").select(RECORD)
    twice = told.filter(~pl.col("stood_before")).select(RECORD).join(ended, on=RECORD, how="semi")
    marked = told.join(
        twice.with_columns(changed=pl.lit(value=True)), on=RECORD, how="left", maintain_order="left"
    ).with_columns(pl.col("changed").fill_null(value=False))
    return marked.select(EVENTS_SCHEMA.names()).cast(EVENTS_SCHEMA), unaccounted


def _versions(storage: StudyStorage, blocks: Sequence[str], dids: pl.Series) -> NDArray[np.uint64]:
    columns = KEYS_SCHEMA.names()
    hashed = [
        rows.select(_VERSION_OF_RECORD).to_series().to_numpy()
        for rows in read_keys(storage, blocks, dids, columns)
    ]
    return np.concatenate([np.empty(0, np.uint64), *hashed])


def _rows(
    storage: StudyStorage, blocks: Sequence[str], dids: pl.Series, hashes: NDArray[np.uint64]
) -> pl.DataFrame:
    """Return the keys and CIDs of the versions of these hashes."""
    found = [KEYS_SCHEMA.to_frame()]
    if len(hashes):
        wanted = pl.Series(hashes).implode()
        found += [
            rows.filter(_VERSION_OF_RECORD.is_in(wanted))
            for rows in read_keys(storage, blocks, dids, KEYS_SCHEMA.names())
        ]
    return pl.concat(found)


def _unaccounted(
    before: PackContents, now: PackContents, dids: pl.Series, gone: pl.DataFrame, new: pl.DataFrame
) -> int:
    """Count the accounts of which the records before, less those gone, with those new, are not the records now.

    How many there are was counted when the snapshots were proven, by walking their trees.
    """
    sums = (
        dids.to_frame("did")
        .join(before.accounts.select("did", before="stored"), on="did", how="left")
        .join(now.accounts.select("did", now="stored"), on="did", how="left")
        .join(gone.group_by("did").agg(gone=pl.len().cast(pl.Int64)), on="did", how="left")
        .join(new.group_by("did").agg(new=pl.len().cast(pl.Int64)), on="did", how="left")
        .with_columns(pl.col("gone", "new").fill_null(0))
    )
    holds = pl.col("before") - pl.col("gone") + pl.col("new") == pl.col("now")
    return sums.filter(~holds.fill_null(value=False)).height
