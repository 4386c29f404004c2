"""Which accounts are shared: all that stand in the tables and are active, or a sample of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.repos.snapshots import UNRESOLVED
from backfill_dagster.sharing.pseudonyms import place
from backfill_dagster.tables.accounts import INACTIVE_STATES

if TYPE_CHECKING:
    from backfill_dagster.config.sharing import Sharing
    from backfill_dagster.sharing.pseudonyms import Pseudonyms

_LEADS_NOWHERE = (DirectoryState.NOT_FOUND, DirectoryState.NO_PDS, DirectoryState.BAD_DOCUMENT)


def is_gone() -> pl.Expr:
    """Tell of accounts, by `state` and `reason`, which are withdrawn, or have a DID that leads nowhere any more."""
    leads_nowhere = pl.col("reason").is_in([word.value for word in _LEADS_NOWHERE]).fill_null(value=False)
    is_unresolved = (pl.col("state") == UNRESOLVED) & leads_nowhere
    return pl.col("state").is_in(sorted(INACTIVE_STATES)) | is_unresolved


def accounts_to_share(
    accounts: pl.DataFrame, sharing: Sharing, pseudonyms: Pseudonyms | None = None
) -> pl.DataFrame:
    """Return the rows of the table of accounts whose records are shared.

    Those that are in the tables and have a snapshot, but not accounts that are gone since, also if the study keeps
    them. Of them the sample: an account is in it if the hash of its DID, and so its place between 0 and 1, is
    below the sample's share. Of pseudonyms that hash is made with their secret: whoever knows the seed cannot tell who
    was taken.
    """
    shown = accounts.filter(pl.col("shown") & pl.col("obtained").is_not_null() & ~is_gone())
    if sharing.sample is None:
        return shown
    seed = sharing.sample_seed
    places = [
        _public_place(seed, did) if pseudonyms is None else pseudonyms.place_of(seed, did)
        for did in shown["did"]
    ]
    return shown.filter(pl.Series(places, dtype=pl.Float64) < sharing.sample)


def _public_place(seed: str, did: str) -> float:
    return place(hashlib.sha256(f"{seed}\0{did}".encode()).digest())
