"""The snapshot that each account's rows are made of, as its pack tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.repos.outcomes import Obtained, Outcome
from backfill_dagster.repos.packs import PACK_SCHEMA
from backfill_dagster.storage import partition_folder

if TYPE_CHECKING:
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
_PACKS_AT_ONCE = 64


def list_snapshots(storage: StudyStorage, current: pl.DataFrame) -> pl.DataFrame:
    """Return the snapshots (SNAPSHOTS_SCHEMA) that are told by `did, pds_host, pack`, sorted by DID."""
    # In the order of the packs, so that some of these have their accounts side by side: none is looked for among all.
    ordered = current.select("did", "pds_host", "pack").sort("pds_host", "pack")
    packs = ordered.group_by("pds_host", "pack", maintain_order=True).agg(accounts=pl.len())
    found, begun = [SNAPSHOTS_SCHEMA.to_frame()], 0
    for some in packs.iter_slices(_PACKS_AT_ONCE):
        own = ordered.slice(begun, int(some["accounts"].sum()))
        begun += own.height
        keys = {f"repos/{partition_folder(host)}/{pack}.parquet": pack for host, pack, _ in some.iter_rows()}
        rows = (
            storage.scan_named(keys, PACK_SCHEMA, "pack")
            .filter(pl.col("outcome") == Outcome.COMPLETE.value)
            .join(own.lazy(), on=["did", "pack"])
            .select(
                *("did", "pds_host", "pack"),
                pl.col("obtained").fill_null(Obtained.REPO.value),
                *("repo_rev", "commit_cid", "signed_by", "signing_key", "fetched_at", "records"),
                pl.col("purged").fill_null(0),
                masked=pl.col("masked").list.len().fill_null(0).cast(pl.Int64),
            )
        )
        found += storage.collect([rows], keys)
    return pl.concat(found).sort("did")
