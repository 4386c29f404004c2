"""The hosts of a study: how many of its accounts live on each, and how fast their repositories came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.repos.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.tables.account_sums import AccountSums

# A host of fewer accounts is not named: one that serves a single person often bears that person's handle.
MIN_ACCOUNTS_TO_NAME = 5

_NANOSECONDS = 10**9

DOWNLOADS_SCHEMA = pl.Schema(
    {"pds_host": pl.String(), "downloads": pl.Int64(), "bytes": pl.Int64(), "nanoseconds": pl.Int64()}
)
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


def summarise_hosts(accounts: AccountSums, downloads: pl.DataFrame) -> pl.DataFrame:
    """Return a row per host (HOSTS_SCHEMA), largest first, of accounts that are in the source and have a host.

    `complete` and `failed` count states. `downloads` (DOWNLOADS_SCHEMA) are those of whole and proven repositories that
    the host ever served; `seconds` is the sum of the times of each, of which several run at once.
    """
    number, state = pl.col("accounts"), pl.col("state")
    sizes = (
        accounts.kinds.filter(pl.col("pds_host").is_not_null())
        .group_by("pds_host")
        .agg(
            number.sum(),
            complete=number.filter(state == Outcome.COMPLETE.value).sum(),
            failed=number.filter(state == Outcome.FAILED.value).sum(),
        )
    )
    served = downloads.with_columns(seconds=pl.col("nanoseconds") / _NANOSECONDS)
    numbers = ["downloads", "bytes", "seconds"]
    return (
        sizes.join(served, on="pds_host", how="left")
        .with_columns(pl.col(*numbers).fill_null(0))
        .select(HOSTS_SCHEMA.names())
        .cast(HOSTS_SCHEMA)
        .sort("accounts", "pds_host", descending=[True, False])
    )


def sum_downloads(attempts: Iterable[pl.DataFrame], dids: pl.Series) -> pl.DataFrame:
    """Return what each host has served of whole repositories of these accounts, which are sorted (DOWNLOADS_SCHEMA).

    `attempts` are the ledger's rows, in any order, some at a time. Times are whole numbers, so that their sum does not
    depend on the order.
    """
    total = DOWNLOADS_SCHEMA.to_frame()
    for some in attempts:
        of_repos = some.filter(pl.col("outcome") == Outcome.COMPLETE.value, pl.col("seconds") > 0)
        served = of_repos.filter(_are_among(of_repos["did"], dids)).select(
            "pds_host",
            downloads=pl.lit(1, pl.Int64),
            bytes="bytes_received",
            nanoseconds=(pl.col("seconds") * _NANOSECONDS).round().cast(pl.Int64),
        )
        total = pl.concat([total, served.cast(DOWNLOADS_SCHEMA)]).group_by("pds_host").agg(pl.all().sum())
    return total


def _are_among(values: pl.Series, of: pl.Series) -> pl.Series:
    """Tell which values are among sorted ones: to look them up takes far less than to hash all of those each time."""
    if of.is_empty():
        return pl.repeat(value=False, n=len(values), dtype=pl.Boolean, eager=True)
    places = of.search_sorted(values).clip(0, len(of) - 1)
    return of.gather(places) == values


def megabytes_per_second() -> pl.Expr:
    """Give the mean speed of a download from each host, in 10^6 bytes per second; null if there was none."""
    return pl.when(pl.col("seconds") > 0, pl.col("bytes") > 0).then(pl.col("bytes") / pl.col("seconds") / 1e6)


def is_named() -> pl.Expr:
    """Tell which hosts have accounts enough to be named on a page that is handed on."""
    return pl.col("accounts") >= MIN_ACCOUNTS_TO_NAME
