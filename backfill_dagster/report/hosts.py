"""The hosts of a study: how many of its accounts live on each, and how fast their repositories came."""

from __future__ import annotations

import polars as pl

from backfill_dagster.repos.outcomes import Outcome

# A host of fewer accounts is not named: one that serves a single person often bears that person's handle.
MIN_ACCOUNTS_TO_NAME = 5

HOSTS_SCHEMA = pl.Schema(
    {
        "pds_host": pl.String(),
        "accounts": pl.Int64(),
        "complete": pl.Int64(),
        "failed": pl.Int64(),
        "downloads": pl.Int64(),
        "bytes": pl.Int64(),
        "seconds": pl.Float64(),
    }
)


def summarise_hosts(accounts: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """Return a row per host (HOSTS_SCHEMA), largest first, of accounts that are in the source and have a host.

    `complete` and `failed` count states. `downloads`, with their `bytes` and `seconds`, are those of whole and proven
    repositories that the host ever served; `seconds` is the sum of the times of each, of which several run at once.
    """
    living = accounts.filter(pl.col("pds_host").is_not_null())
    sizes = living.group_by("pds_host").agg(
        accounts=pl.len(),
        complete=(pl.col("state") == Outcome.COMPLETE.value).sum(),
        failed=(pl.col("state") == Outcome.FAILED.value).sum(),
    )
    served = (
        ledger.lazy()
        .filter(pl.col("outcome") == Outcome.COMPLETE.value, pl.col("seconds") > 0)
        .join(accounts.lazy().select("did"), on="did", how="semi")
        .group_by("pds_host")
        .agg(downloads=pl.len(), bytes=pl.col("bytes_received").sum(), seconds=pl.col("seconds").sum())
        .collect()
    )
    numbers = ["downloads", "bytes", "seconds"]
    return (
        sizes.join(served, on="pds_host", how="left")
        .with_columns(pl.col(*numbers).fill_null(0))
        .select(HOSTS_SCHEMA.names())
        .cast(HOSTS_SCHEMA)
        .sort("accounts", "pds_host", descending=[True, False])
    )


def megabytes_per_second() -> pl.Expr:
    """Give the mean speed of a download from each host, in 10^6 bytes per second; null if there was none."""
    return pl.when(pl.col("seconds") > 0, pl.col("bytes") > 0).then(pl.col("bytes") / pl.col("seconds") / 1e6)


def is_named() -> pl.Expr:
    """Tell which hosts have accounts enough to be named on a page that is handed on."""
    return pl.col("accounts") >= MIN_ACCOUNTS_TO_NAME
