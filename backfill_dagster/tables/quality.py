"""What the table of accounts says about the quality of a collection, held against the study's thresholds.

Nothing here can be a defect of this package: servers fail and clients write nonsense. What matters to a study is how
much was lost, and whether it was lost evenly: a loss that falls on one host, or on active accounts, is a bias.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.repos.outcomes import FailureReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.config.operation import Quality
    from backfill_dagster.tables.account_sums import AccountSums

# A share of fewer accounts, or records, says nothing: one of them would be too many.
MIN_ACCOUNTS = 20
MIN_RECORDS = 1000
_DECILES = 10
_SHOWN = 10

# Failures that a large repository meets more often than a small one.
_GROWING_WITH_SIZE = [
    FailureReason.TIMED_OUT.value,
    FailureReason.TRUNCATED.value,
    FailureReason.TOO_LARGE.value,
    FailureReason.CHANGED_DURING_EXPORT.value,
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One threshold and what was found: `share` against `limit`, the numbers behind it, and what may be done."""

    name: str
    share: float
    limit: float
    what_to_do: str
    numbers: Mapping[str, int | float] = field(default_factory=dict)
    worst: pl.DataFrame | None = None

    @property
    def passed(self) -> bool:
        """Whether the share is within its limit."""
        return self.share <= self.limit


def findings(sums: AccountSums, limits: Quality) -> list[Finding]:
    """Hold what the accounts of the source come to against the thresholds, one finding each."""
    accounts = sums.of_source
    return [
        _failed_accounts(accounts, limits.max_failed_accounts),
        _record_share(
            accounts,
            "rejected_records",
            part="records_rejected",
            whole="records_fetched",
            limit=limits.max_rejected_records,
            what_to_do="Look at records/*/rejects/*.parquet: which collections and clients they are of, and why.",
        ),
        _record_share(
            accounts,
            "undated_records",
            part="undated",
            whole="records_kept",
            limit=limits.max_undated_records,
            what_to_do="They stand in undated/, with the reason in date_quality: count them in, or say in the "
            "paper that they are out.",
        ),
        _record_share(
            accounts,
            "records_with_issues",
            part="with_issues",
            whole="records_kept",
            limit=limits.max_records_with_issues,
            what_to_do="The issues column of the tables names the fields; their values became null.",
        ),
        _uneven_over_hosts(accounts, limits.max_uneven_loss),
        _uneven_over_activity(accounts, limits.max_uneven_loss),
    ]


def _failed_accounts(accounts: AccountSums, limit: float) -> Finding:
    reasons = (
        accounts.kinds.filter(_FAILED)
        .group_by("reason")
        .agg(pl.col("accounts").sum())
        .sort("accounts", "reason", descending=[True, False])
    )
    failed = int(reasons["accounts"].sum())
    return Finding(
        "failed_accounts",
        _share(failed, accounts.accounts),
        limit,
        "Run the study's retry_failed job; what still fails then is named, with its reason, in accounts.parquet.",
        {"failed": failed, "accounts": accounts.accounts},
        reasons.head(_SHOWN),
    )


def _record_share(
    accounts: AccountSums, name: str, *, part: str, whole: str, limit: float, what_to_do: str
) -> Finding:
    some, of = accounts.total(part), accounts.total(whole)
    return Finding(name, _share(some, of), limit, what_to_do, {part: some, whole: of})


def _uneven_over_hosts(accounts: AccountSums, limit: float) -> Finding:
    """Tell how far the worst host is above the whole, by accounts that failed and by records that were rejected."""
    counted = accounts.kinds.with_columns(failed=pl.col("accounts") * _FAILED)
    by_host = _losses(counted.filter(pl.col("pds_host").is_not_null()), "pds_host")
    compared = by_host.filter(
        pl.any_horizontal(pl.col("failed_share", "rejected_share").is_not_null())
    ).height
    return Finding(
        "loss_even_over_hosts",
        _largest_excess(by_host, counted),
        limit,
        "The hosts in the table lost more than the others: retry them, or report their accounts apart.",
        {"hosts_compared": compared, "hosts_too_small_to_compare": by_host.height - compared},
        _worst(by_host),
    )


def _uneven_over_activity(accounts: AccountSums, limit: float) -> Finding:
    """Do the same over tenths of the accounts by number of records, of those whose repository has been seen.

    Of an account that was never fetched nobody knows how active it is; failures that grow with a repository's size
    hint that it is.
    """
    seen = accounts.seen.with_columns(
        accounts=pl.lit(1, pl.Int64),
        tenth=1
        + (pl.col("records_fetched").rank("ordinal") - 1)
        * _DECILES
        // pl.max_horizontal(1, pl.len()).cast(pl.Int64),
    )
    unseen = accounts.kinds.filter(_FAILED & ~pl.col("has_rev"))
    by_tenth = _losses(seen, "tenth")
    return Finding(
        "loss_even_over_activity",
        _largest_excess(by_tenth, seen),
        limit,
        "Accounts of some activity lost more than others, which biases whatever is summed over accounts: retry them, "
        "or weight by activity.",
        {
            "failed_and_never_seen": int(unseen["accounts"].sum()),
            "of_these_for_their_size": int(
                unseen.filter(pl.col("reason").is_in(_GROWING_WITH_SIZE))["accounts"].sum()
            ),
        },
        _worst(by_tenth),
    )


def _losses(counted: pl.DataFrame, by: str) -> pl.DataFrame:
    """Return `by, accounts, failed, records, rejected, failed_share, rejected_share`; shares of too few are null.

    Of rows with `accounts`, those of them that `failed`, and their `records_fetched` and `records_rejected`.
    """
    return (
        counted.group_by(by)
        .agg(
            pl.col("accounts", "failed").sum(),
            records=pl.col("records_fetched").sum(),
            rejected=pl.col("records_rejected").sum(),
        )
        .with_columns(
            failed_share=pl.when(pl.col("accounts") >= MIN_ACCOUNTS).then(
                pl.col("failed") / pl.col("accounts")
            ),
            rejected_share=pl.when(pl.col("records") >= MIN_RECORDS).then(
                pl.col("rejected") / pl.col("records")
            ),
        )
        .sort(by)
    )


def _largest_excess(groups: pl.DataFrame, counted: pl.DataFrame) -> float:
    """Return by how much the worst group is above all that are counted."""
    failed = _share(int(counted["failed"].sum()), int(counted["accounts"].sum()))
    rejected = _share(int(counted["records_rejected"].sum()), int(counted["records_fetched"].sum()))
    excesses = groups.select(
        pl.col("failed_share").max() - failed, pl.col("rejected_share").max() - rejected
    ).row(0)
    return max([0.0, *(float(excess) for excess in excesses if excess is not None)])


def _worst(groups: pl.DataFrame) -> pl.DataFrame:
    lost = pl.max_horizontal("failed_share", "rejected_share").fill_null(0)
    return groups.filter(lost > 0).sort(lost, descending=True).head(_SHOWN)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


_FAILED = pl.col("state") == Outcome.FAILED.value
