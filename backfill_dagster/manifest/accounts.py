"""The snapshot that each account's rows are made of, as its pack tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.repos.ledger_lots import account_ranges
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.repos.packs import PACK_SCHEMA, pack_keys
from backfill_dagster.storage import partition_folder, without_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backfill_dagster.storage import StudyStorage

SNAPSHOT_COLUMNS: tuple[Column, ...] = (
    Column("did", pl.String(), "The account's DID: the key of this table.", required=True),
    Column("pds_host", pl.String(), "Host of the PDS that the snapshot came from.", required=True),
    Column("pack", pl.String(), "Name of the pack that holds it.", required=True),
    Column("obtained", pl.String(), "How it was obtained.", required=True, words=(Obtained,)),
    Column("repo_rev", pl.String(), "Revision (TID) of the repository; null if its host named none."),
    Column("commit_cid", pl.String(), "CID of the signed commit; null if there is none."),
    Column("signed_by", pl.String(), "Which key signed it: current, previous, or null if unchecked."),
    Column("signing_key", pl.String(), "That key, as did:key."),
    Column("fetched_at", pl.Datetime("us", "UTC"), "When it was fetched.", required=True),
    Column("records", pl.Int64(), "Records in the repository's tree, or of those asked for.", required=True),
    Column(
        "purged", pl.Int64(), "Those that are not stored because the study has purged them.", required=True
    ),
    Column("masked", pl.Int64(), "Those in which the study has masked purged accounts.", required=True),
)
SNAPSHOTS_SCHEMA = schema_of(SNAPSHOT_COLUMNS)
_PACKS_SCHEMA = pl.Schema({"pds_host": pl.String(), "pack": pl.String()})
_NUMBER = "_number"
_PACKS_AT_ONCE = 64


@dataclass(slots=True)
class SnapshotTotals:
    """How many snapshots there are, and how many records they have, purged ones and masked ones among them."""

    snapshots: int = 0
    records: int = 0
    purged: int = 0
    masked: int = 0

    def counted(self, lists: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield lists of snapshots (SNAPSHOTS_SCHEMA) as they come, and add up what they tell of."""
        for rows in lists:
            self.snapshots += rows.height
            self.records += int(rows["records"].sum())
            self.purged += int(rows["purged"].sum())
            self.masked += int(rows["masked"].sum())
            yield rows


def list_snapshots(storage: StudyStorage, current: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the snapshots (SNAPSHOTS_SCHEMA) that frames with `did, pds_host, pack` name, sorted by DID.

    In lists of a bounded number of accounts that follow each other, though packs have accounts from everywhere. Of all
    of them no more is held than the DID and a number.
    """
    packs = pl.DataFrame([pack[:2] for pack in pack_keys(storage)], schema=_PACKS_SCHEMA, orient="row")
    numbered = packs.with_row_index(_NUMBER)
    ordered = pl.concat(
        [
            pl.DataFrame(schema={"did": pl.String(), _NUMBER: pl.UInt32()}),
            *(
                without_source(some.join(numbered, on=packs.columns).select("did", _NUMBER))
                for some in current
            ),
        ]
    ).sort(_NUMBER)
    ranges = account_ranges(ordered.height)
    told = _told_by_packs(storage, numbered, ordered)
    del ordered
    if len(ranges) == 1:
        yield pl.concat([SNAPSHOTS_SCHEMA.to_frame(), *told]).sort("did")
        return
    with storage.scratch() as scratch, DealtRows(scratch / "snapshots.arrow", SNAPSHOTS_SCHEMA) as dealt:
        for rows in told:
            for dids, some in dealt_by_range(rows, ranges):
                dealt.add(dids, some)
        for dids in ranges:
            yield dealt.of(dids).sort("did")


def _told_by_packs(
    storage: StudyStorage, packs: pl.DataFrame, ordered: pl.DataFrame
) -> Iterator[pl.DataFrame]:
    """Yield what some packs after the others tell of their snapshots (SNAPSHOTS_SCHEMA).

    These stand in the order of their packs' numbers, so that some packs have theirs side by side: none is looked for
    among all.
    """
    counted = ordered.group_by(_NUMBER, maintain_order=True).agg(accounts=pl.len()).join(packs, on=_NUMBER)
    begun = 0
    for some in counted.sort(_NUMBER).iter_slices(_PACKS_AT_ONCE):
        own = ordered.slice(begun, int(some["accounts"].sum())).join(some, on=_NUMBER)
        begun += own.height
        named = some.select(_PACKS_SCHEMA.names()).iter_rows()
        keys = {f"repos/{partition_folder(host)}/{pack}.parquet": pack for host, pack in named}
        rows = (
            storage.scan_named(keys, PACK_SCHEMA, "pack")
            .filter(pl.col("outcome") == Outcome.COMPLETE.value)
            .join(own.lazy().select("did", "pds_host", "pack"), on=["did", "pack"])
            .select(
                *("did", "pds_host", "pack"),
                pl.col("obtained").fill_null(Obtained.REPO.value),
                *("repo_rev", "commit_cid", "signed_by", "signing_key", "fetched_at", "records"),
                pl.col("purged").fill_null(0),
                masked=pl.col("masked").list.len().fill_null(0).cast(pl.Int64),
            )
        )
        yield from storage.collect([rows], keys)
