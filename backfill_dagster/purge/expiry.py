"""Which accounts are to be purged because they are gone: since when each is in the state that it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.snapshots import TOMBSTONED, account_states

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

# What no owner and no operator is expected to take back.
GONE_STATES = frozenset({Outcome.DELETED.value, TOMBSTONED})


def expired_accounts(
    directory: pl.DataFrame, ledger: pl.DataFrame, states: Collection[str], until: datetime
) -> list[str]:
    """Return the sorted DIDs of accounts that are in one of these states, and have been since `until` or longer.

    A state given by a server began with the first attempt that found it, of those with no other answer between; a
    failure is no answer. A state of the directory began as its column `state_since` says, without
    which, in a directory of an older version, it began when it was last seen.
    """
    current = account_states(directory, ledger).filter(pl.col("state").is_in(sorted(states)))
    answers = ledger.filter(pl.col("outcome") != Outcome.FAILED.value).join(current, on="did")
    last_other = (
        answers.filter(pl.col("outcome") != pl.col("state"))
        .group_by("did")
        .agg(other=pl.col("fetched_at").max())
    )
    by_server = (
        answers.filter(pl.col("outcome") == pl.col("state"))
        .join(last_other, on="did", how="left")
        .filter(pl.col("other").is_null() | (pl.col("fetched_at") > pl.col("other")))
        .group_by("did")
        .agg(since=pl.col("fetched_at").min())
    )
    by_directory = directory.join(
        current.filter(pl.col("state") == TOMBSTONED).select("did"), on="did", how="semi"
    ).select("did", since=pl.coalesce("^state_since$", "resolved_at"))
    since = pl.concat([by_directory, by_server.join(by_directory, on="did", how="anti")])
    return since.filter(pl.col("since") <= until)["did"].sort().to_list()
