"""Which snapshots of an account can be compared with each other, and until when each is known to have held.

Snapshots of an account follow each other by the time of their fetch. Two can be compared if the same was asked for both
times. A later attempt that found the account at the same revision (`unchanged`) confirms the snapshot: by the word of
the host, all of its records were still there. Failures, and hosts that call an account inactive, say nothing about its
records.
"""

from __future__ import annotations

import polars as pl

from backfill_dagster.repos.outcomes import Obtained, Outcome

_INSTANT = pl.Datetime("us", "UTC")
CHAIN_SCHEMA = pl.Schema(
    {
        "did": pl.String(),
        "pds_host": pl.String(),
        "pack": pl.String(),
        "fetched_at": _INSTANT,
        # The last time that the account was known to be at this snapshot.
        "confirmed_at": _INSTANT,
        # How many looks said so.
        "confirmations": pl.UInt32(),
        # Of the snapshots that can be compared with this one: the first one's fetch, and the last one's.
        "first_at": _INSTANT,
        "last_at": _INSTANT,
        # The snapshot before, if it can be compared.
        "before_host": pl.String(),
        "before_pack": pl.String(),
        "before_at": _INSTANT,
        "before_confirmed_at": _INSTANT,
        # The fetch of the one after, if it can be compared.
        "next_at": _INSTANT,
    }
)


def snapshot_chains(ledger: pl.DataFrame) -> pl.DataFrame:
    """Return every snapshot of every account (CHAIN_SCHEMA), sorted by DID and time; `ledger` as of `read_ledger`.

    A repository at an older revision than one that was fetched before is none of them: its host has gone back, and
    what it lacks is not gone.
    """
    attempts = ledger.select(
        "did",
        "pds_host",
        "pack",
        "outcome",
        pl.col("obtained").fill_null(Obtained.REPO.value),
        "asked",
        "repo_rev",
        "fetched_at",
    )
    # While a pack is written anew, an attempt can stand in two.
    complete = (
        attempts.filter(pl.col("outcome") == Outcome.COMPLETE.value)
        .sort("did", "fetched_at", "pack")
        .unique(["did", "fetched_at"], keep="last", maintain_order=True)
    )
    # What follows goes by the order of the rows: to look at accounts one by one would take minutes.
    kept = _without_steps_back(complete)
    is_first = is_another("did", "obtained", "asked")
    kept = kept.with_columns(is_first=is_first, segment=is_first.cum_sum())
    kept = _confirmed(kept, attempts.filter(pl.col("outcome") == Outcome.UNCHANGED.value))
    is_last = pl.col("is_first").shift(-1, fill_value=True)

    def before(name: str) -> pl.Expr:
        return pl.when(~pl.col("is_first")).then(pl.col(name).shift(1))

    return kept.select(
        "did",
        "pds_host",
        "pack",
        "fetched_at",
        "confirmed_at",
        "confirmations",
        first_at=pl.when("is_first").then("fetched_at").forward_fill(),
        last_at=pl.when(is_last).then("fetched_at").backward_fill(),
        before_host=before("pds_host"),
        before_pack=before("pack"),
        before_at=before("fetched_at"),
        before_confirmed_at=before("confirmed_at"),
        next_at=pl.when(~is_last).then(pl.col("fetched_at").shift(-1)),
    ).cast(CHAIN_SCHEMA)


def is_another(*columns: str) -> pl.Expr:
    """Tell which rows differ from the row before in any of these columns; the first one does."""
    differ = (pl.col(name).ne_missing(pl.col(name).shift(1)) for name in columns)
    return pl.any_horizontal(*differ) | (pl.int_range(pl.len()) == 0)


def _without_steps_back(complete: pl.DataFrame) -> pl.DataFrame:
    """Leave out the repositories at an older revision than one of the same account further up."""
    is_repo = (pl.col("obtained") == Obtained.REPO.value) & pl.col("repo_rev").is_not_null()
    # Of a revision its place among all, behind the account's: so the highest so far is one of the account's own.
    place = pl.when(is_repo).then(pl.col("repo_rev").rank("dense")).fill_null(0).cast(pl.UInt64)
    account = is_another("did").cum_sum().cast(pl.UInt64)
    ordered = complete.with_columns(order=account * 2**32 + place, is_repo=is_repo)
    return ordered.filter(~pl.col("is_repo") | (pl.col("order") == pl.col("order").cum_max())).drop(
        "order", "is_repo"
    )


def _confirmed(snapshots: pl.DataFrame, unchanged: pl.DataFrame) -> pl.DataFrame:
    """Add until when each snapshot is known to have held, as `confirmed_at`, and how often that was seen."""
    same = ("did", "obtained", "asked", "repo_rev")
    numbered = snapshots.with_row_index("number")
    looks = pl.concat(
        [numbered.select(*same, "fetched_at", "number"), unchanged.select(*same, "fetched_at")],
        how="diagonal",
    ).sort("did", "fetched_at", "number", nulls_last=True)
    found = (
        # Each look comes after the snapshot that was the latest by then.
        looks.with_columns(of=pl.col("number").forward_fill())
        .filter(pl.col("number").is_null())
        .join(
            numbered.select("number", *(pl.col(name).alias(f"{name}_then") for name in same)),
            left_on="of",
            right_on="number",
        )
        .filter(pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_then")) for name in same))
        .group_by("of")
        .agg(confirmed_at=pl.col("fetched_at").max(), confirmations=pl.col("fetched_at").n_unique())
    )
    return (
        numbered.join(found, left_on="number", right_on="of", how="left", maintain_order="left")
        .with_columns(pl.coalesce("confirmed_at", "fetched_at"), pl.col("confirmations").fill_null(0))
        .drop("number")
    )
