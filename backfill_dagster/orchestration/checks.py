"""Checks of the finished study. They block: each can only fail by a defect of this package or a damaged file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from backfill_dagster.repos.snapshots import PENDING
from backfill_dagster.tables.accounts import unreconciled

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN_HOSTS = 10


def accounts_checks(accounts: dg.AssetKey) -> Sequence[dg.AssetCheckSpec]:
    """Return the checks that stand on the table of accounts."""
    return [
        dg.AssetCheckSpec(
            "records_reconcile",
            asset=accounts,
            blocking=True,
            description="For every account, the records of its tree = those in the final files + those filtered + "
            "those rejected.",
        ),
        dg.AssetCheckSpec(
            "rows_stand_in_their_tables",
            asset=accounts,
            blocking=True,
            description="For every account and table, the final files hold as many rows as the conversion kept.",
        ),
        dg.AssetCheckSpec(
            "uris_are_unique",
            asset=accounts,
            blocking=True,
            description="No record stands in its table twice.",
        ),
        dg.AssetCheckSpec(
            "every_account_settled",
            asset=accounts,
            blocking=False,
            description="Every account has been attempted.",
        ),
    ]


_BUILD_AGAIN = (
    "Run the study's `_rebuild` job; if it still fails, a stored file was changed, or this is a defect."
)


def accounts_check_results(
    accounts: pl.DataFrame, misplaced: pl.DataFrame, repeated_uris: int
) -> list[dg.AssetCheckResult]:
    """Evaluate the checks on the table of accounts, and on the tables that it counts."""
    off = unreconciled(accounts)
    pending = accounts.filter(pl.col("state") == PENDING)
    return [
        dg.AssetCheckResult(
            check_name="records_reconcile",
            passed=off.is_empty(),
            metadata={
                "accounts": off.height,
                # Which accounts, `accounts.parquet` says: an event cannot be rid of a name again.
                "hosts": off["pds_host"].drop_nulls().unique().sort().head(_SHOWN_HOSTS).to_list(),
                "what_to_do": _BUILD_AGAIN,
            },
        ),
        dg.AssetCheckResult(
            check_name="rows_stand_in_their_tables",
            passed=misplaced.is_empty(),
            metadata={
                "differences": misplaced.height,
                "tables": sorted(set(misplaced["table"])),
                "what_to_do": _BUILD_AGAIN,
            },
        ),
        dg.AssetCheckResult(
            check_name="uris_are_unique",
            passed=repeated_uris == 0,
            metadata={"repeated": repeated_uris, "what_to_do": _BUILD_AGAIN},
        ),
        dg.AssetCheckResult(
            check_name="every_account_settled",
            passed=pending.is_empty(),
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "accounts": pending.height,
                "what_to_do": "Materialize the missing partitions of `repos`.",
            },
        ),
    ]
