"""Which hosts have metrics of their own: a bounded number, whatever the directory and its documents name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping

# What all hosts are called that have none of their own.
OTHER = "other"


class HostLabels:
    """The labels of one study's hosts: those with the most accounts by their names, `most` of them, the rest `other`.

    Beside these, the hosts of the study's own configuration that are asked to `always` have one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._always: set[str] = set()
        self._chosen: frozenset[str] = frozenset()

    def always(self, host: str) -> None:
        """Name a host, however many accounts it has; of a study's configuration, and never of the network."""
        self._always.add(host)

    def choose(self, accounts: Mapping[str, int]) -> None:
        """Choose by the accounts of each host, and by name among equals.

        The first choice that there is holds: in the middle of a run, a series must not become another one.
        """
        if not self._chosen:
            ordered = sorted(accounts, key=lambda host: (-accounts[host], host))
            self._chosen = frozenset(ordered[: self._most])

    def of(self, host: str) -> str:
        """Return a host's label."""
        return host if host in self._chosen or host in self._always else OTHER


def accounts_by_host(directory: pl.LazyFrame) -> pl.LazyFrame:
    """Count the accounts of each PDS in a directory (`did, handle, pds_host`) that may be named: `pds_host, accounts`.

    A host that is an account's own, because its handle or its did:web is the host's name, would name the account.
    """
    host = pl.col("pds_host")
    own = pl.any_horizontal(
        (pl.col("handle").str.to_lowercase() == host).fill_null(value=False),
        pl.col("did") == pl.concat_str(pl.lit("did:web:"), host),
    )
    hosts = directory.filter(host.is_not_null()).group_by("pds_host").agg(accounts=pl.len(), own=own.any())
    return hosts.filter(~pl.col("own")).select("pds_host", "accounts")
