"""An account's state (its latest attempt) and its snapshot (the repository that its rows are taken from).

Only a newer snapshot supersedes a snapshot; a later failure, or a server that calls the account deactivated,
never destroys one.
"""

from __future__ import annotations

from enum import StrEnum

import polars as pl

from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.repos.outcomes import Outcome

# States that are no server's: from the directory, or of an account not fetched yet.
UNRESOLVED = "unresolved"
TOMBSTONED = "tombstoned"
PENDING = "pending"

_RESOLVED = "resolved"


class FetchMode(StrEnum):
    """Which accounts a fetch is for."""

    UNSETTLED = "unsettled"  # those not fetched yet, and those that failed
    FAILED = "failed"  # those that failed, alone
    REFRESH = "refresh"  # all; of those that are stored, only what has moved on since is fetched


def current_hosts(directory: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """Return `did, current_host`: where each account lives by the latest word on it.

    An attempt is made only at the host that the DID document named at that moment, so an attempt later than the
    directory's row outweighs it.
    """
    words = pl.concat(
        [
            directory.filter(pl.col("state") == _RESOLVED).select(
                "did", pl.col("pds_host").alias("current_host"), pl.col("resolved_at").alias("known_at")
            ),
            ledger.select(
                "did", pl.col("pds_host").alias("current_host"), pl.col("fetched_at").alias("known_at")
            ),
        ]
    )
    return words.sort("did", "known_at").unique("did", keep="last", maintain_order=True).drop("known_at")


def latest_attempts(ledger: pl.DataFrame) -> pl.DataFrame:
    """Return the latest attempt on each account, in the ledger's columns, sorted by DID."""
    return ledger.sort("did", "fetched_at", "pack").unique("did", keep="last", maintain_order=True)


def snapshots(directory: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """Return each account's snapshot, in the ledger's columns, sorted by DID; accounts without one are absent.

    Of its complete repositories: one from the host where the account lives now, then the highest rev, then the
    latest fetched.
    """
    complete = ledger.filter(pl.col("outcome") == Outcome.COMPLETE.value)
    ranked = complete.join(current_hosts(directory, ledger), on="did", how="left").with_columns(
        at_home=(pl.col("pds_host") == pl.col("current_host")).fill_null(value=False)
    )
    order = ["did", "at_home", "repo_rev", "fetched_at", "pack"]
    best = ranked.sort(order, nulls_last=False).unique("did", keep="last", maintain_order=True)
    return best.select(ledger.columns)


def account_states(directory: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """Return `did, state, reason, detail` of every account in the directory: exactly one state each."""
    latest = latest_attempts(ledger).select(
        "did", "outcome", pl.col("reason").alias("failure"), pl.col("detail").alias("failure_detail")
    )
    joined = directory.join(latest, on="did", how="left", maintain_order="left")
    resolved = pl.col("state") == _RESOLVED
    outcome = pl.col("outcome").replace({Outcome.UNCHANGED.value: Outcome.COMPLETE.value})
    return joined.select(
        "did",
        state=pl.when(pl.col("state") == TOMBSTONED)
        .then(pl.lit(TOMBSTONED))
        .when(pl.col("state") == DirectoryState.NOT_ASKED.value)
        .then(pl.lit(PENDING))
        .when(~resolved)
        .then(pl.lit(UNRESOLVED))
        .otherwise(outcome.fill_null(PENDING)),
        reason=pl.when(resolved).then("failure").otherwise("state"),
        detail=pl.when(resolved).then("failure_detail").otherwise("reason"),
    )


def accounts_to_fetch(
    directory: pl.DataFrame, ledger: pl.DataFrame, mode: FetchMode, *, signed: bool
) -> pl.DataFrame:
    """Return the directory's rows of the accounts that a fetch is for, and `known_rev`.

    An account is settled if its latest attempt, made at the host where it lives now, did not fail; and, where
    repositories are to be `signed`, if the signature of its snapshot was checked. `known_rev` is the revision
    of such a snapshot when refreshing, and null otherwise.
    """
    resolved = directory.filter(pl.col("state") == _RESOLVED)
    homes = current_hosts(directory, ledger)
    latest = latest_attempts(ledger).join(homes, on="did")
    stored = snapshots(directory, ledger).join(homes, on="did")
    failed = pl.col("outcome") == Outcome.FAILED.value
    at_home = pl.col("pds_host") == pl.col("current_host")
    proven = pl.col("signed_by").is_not_null() | (not signed)
    if mode is FetchMode.REFRESH:
        known = stored.filter(at_home & proven).select("did", known_rev="repo_rev")
        return resolved.join(known, on="did", how="left", maintain_order="left")
    if mode is FetchMode.FAILED:
        chosen = resolved.join(latest.filter(failed), on="did", how="semi", maintain_order="left")
    else:
        settled = latest.filter(~failed & at_home).join(stored.filter(~proven), on="did", how="anti")
        chosen = resolved.join(settled, on="did", how="anti", maintain_order="left")
    return chosen.with_columns(known_rev=pl.lit(None, dtype=pl.String))
