"""An account's state (its latest attempt) and its snapshot (the repository that its rows are taken from).

Only a newer snapshot supersedes a snapshot; a later failure, or a server that calls the account deactivated,
never destroys one.

A study can ask for less than repositories, and for another part of them than it did before. What it asks of each
account now stands in the directory's column `asked` (`asked.with_asked`), and what an attempt asked in the ledger's. A
directory without that column is that of a study that asks everyone for the whole repository.
"""

from __future__ import annotations

from enum import StrEnum

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.repos.asked import NOTHING, WHOLE_REPOS, with_asked
from backfill_dagster.repos.outcomes import Obtained, Outcome


class StateWithoutAttempt(ClosedSet):
    """States of an account that come of no attempt to fetch it; the others are an attempt's `Outcome`."""

    UNRESOLVED = (
        "unresolved",
        "The directory does not lead to a PDS; `reason` is the directory's state.",
        "If `reason` is a failure, run it again; else correct the source.",
    )
    TOMBSTONED = "tombstoned", "The DID has been given up for good."
    PENDING = "pending", "No attempt was made yet for what the study asks now.", "Run `<name>`: it goes on."
    NOTHING_ASKED = "nothing_asked", "The study asks for single records, and has none of this account."


UNRESOLVED = StateWithoutAttempt.UNRESOLVED.value
TOMBSTONED = StateWithoutAttempt.TOMBSTONED.value
PENDING = StateWithoutAttempt.PENDING.value
NOTHING_ASKED = StateWithoutAttempt.NOTHING_ASKED.value

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

    Of its complete repositories: one that was asked for what is asked for now, then one from the host where the
    account lives now, then the highest rev, then the latest fetched. Of what is no whole repository the rev says
    nothing: nobody signs that of a listing, and proofs can be of several.
    """
    complete = _told_apart(ledger.filter(pl.col("outcome") == Outcome.COMPLETE.value), directory)
    ranked = complete.join(current_hosts(directory, ledger), on="did", how="left").with_columns(
        at_home=(pl.col("pds_host") == pl.col("current_host")).fill_null(value=False),
        rank=pl.when(pl.col("obtained").fill_null(Obtained.REPO.value) == Obtained.REPO.value).then(
            "repo_rev"
        ),
    )
    order = ["did", "as_asked", "at_home", "rank", "fetched_at", "pack"]
    best = ranked.sort(order, nulls_last=False).unique("did", keep="last", maintain_order=True)
    return best.select(ledger.columns)


def account_states(directory: pl.DataFrame, ledger: pl.DataFrame) -> pl.DataFrame:
    """Return `did, state, reason, detail` of every account in the directory: exactly one state each.

    One that is complete, but was asked for something else than is asked for now, is pending.
    """
    latest = _told_apart(latest_attempts(ledger), directory).select(
        "did",
        "outcome",
        "as_asked",
        pl.col("reason").alias("failure"),
        pl.col("detail").alias("failure_detail"),
    )
    joined = _with_asked(directory).join(latest, on="did", how="left", maintain_order="left")
    resolved = pl.col("state") == _RESOLVED
    is_nothing_asked = (pl.col("asked") == NOTHING).fill_null(value=False)
    complete = pl.col("outcome").is_in([Outcome.COMPLETE.value, Outcome.UNCHANGED.value])
    outcome = (
        pl.when(~complete)
        .then("outcome")
        .when("as_asked")
        .then(pl.lit(Outcome.COMPLETE.value))
        .otherwise(pl.lit(PENDING))
    )
    return joined.select(
        "did",
        state=pl.when(pl.col("state") == TOMBSTONED)
        .then(pl.lit(TOMBSTONED))
        .when(pl.col("state") == DirectoryState.NOT_ASKED.value)
        .then(pl.lit(PENDING))
        .when(~resolved)
        .then(pl.lit(UNRESOLVED))
        .when(is_nothing_asked)
        .then(pl.lit(NOTHING_ASKED))
        .otherwise(outcome.fill_null(PENDING)),
        reason=pl.when(~resolved).then("state").when(~is_nothing_asked).then("failure"),
        detail=pl.when(~resolved).then("reason").when(~is_nothing_asked).then("failure_detail"),
    )


def accounts_to_fetch(
    directory: pl.DataFrame, ledger: pl.DataFrame, mode: FetchMode, *, signed: bool
) -> pl.DataFrame:
    """Return the directory's rows of the accounts that a fetch is for, and `known_rev`.

    An account is settled if its latest attempt, made at the host where it lives now and for what is asked for now, did
    not fail; and, where repositories are to be `signed`, if the signature of its snapshot was checked. One of which
    nothing is asked is none to fetch. `known_rev` is the revision of such a snapshot when refreshing, and null
    otherwise.
    """
    resolved = _with_asked(directory).filter(
        pl.col("state") == _RESOLVED, pl.col("asked").ne_missing(pl.lit(NOTHING))
    )
    homes = current_hosts(directory, ledger)
    latest = _told_apart(latest_attempts(ledger), directory).join(homes, on="did")
    stored = _told_apart(snapshots(directory, ledger), directory).join(homes, on="did")
    failed = pl.col("outcome") == Outcome.FAILED.value
    at_home = pl.col("pds_host") == pl.col("current_host")
    # Records that are all said not to be there come without a commit: no signature is missing.
    nothing_to_sign = (pl.col("obtained") == Obtained.RECORD_PROOF.value) & pl.col("repo_rev").is_null()
    proven = pl.col("signed_by").is_not_null() | nothing_to_sign.fill_null(value=False) | (not signed)
    if mode is FetchMode.REFRESH:
        known = stored.filter(at_home & proven & pl.col("as_asked")).select("did", known_rev="repo_rev")
        return resolved.join(known, on="did", how="left", maintain_order="left")
    if mode is FetchMode.FAILED:
        chosen = resolved.join(latest.filter(failed), on="did", how="semi", maintain_order="left")
    else:
        settled = latest.filter(~failed & at_home & pl.col("as_asked")).join(
            stored.filter(~proven), on="did", how="anti"
        )
        chosen = resolved.join(settled, on="did", how="anti", maintain_order="left")
    return chosen.with_columns(known_rev=pl.lit(None, dtype=pl.String))


def _with_asked(directory: pl.DataFrame) -> pl.DataFrame:
    return directory if "asked" in directory.columns else with_asked(directory, WHOLE_REPOS)


def _told_apart(attempts: pl.DataFrame, directory: pl.DataFrame) -> pl.DataFrame:
    """Add whether each attempt was for what is asked of its account now, as `as_asked`."""
    asked_now = _with_asked(directory).select("did", asked_now="asked")
    joined = attempts.join(asked_now, on="did", how="left", maintain_order="left")
    return joined.with_columns(as_asked=pl.col("asked").eq_missing(pl.col("asked_now"))).drop("asked_now")
