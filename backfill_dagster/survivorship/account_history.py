"""The history of accounts: the state of each, its host and its handle, and from when to when each of them held.

States and hosts are seen when an account is fetched and when it is looked up, handles when it is looked up. A failure
says nothing. What came and went between two looks is not seen.
"""

from __future__ import annotations

import polars as pl

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.columns import Column, schema_of
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster.repos.snapshots import TOMBSTONED, UNRESOLVED
from backfill_dagster.survivorship.chains import is_another


class Aspect(ClosedSet):
    """What of an account a row of its history tells."""

    STATE = "state", "What the account's server, or the directory, said of it."
    HOST = "host", "The PDS that the account lived on: another one is a migration."
    HANDLE = "handle", "The handle that its DID document named."


_INSTANT = pl.Datetime("us", "UTC")
ACCOUNT_HISTORY_COLUMNS = (
    Column("did", pl.String(), "DID of the account.", required=True),
    Column("aspect", pl.String(), "What the row tells of it.", required=True, words=(Aspect,)),
    Column(
        "value",
        pl.String(),
        "Its value; of a state one of the account's states that is no failure. Null for a document without a handle.",
    ),
    Column("valid_from", _INSTANT, "When it was first seen.", required=True),
    Column(
        "valid_to", _INSTANT, "When another one was first seen; null if it still held at the latest look."
    ),
    Column(
        "last_confirmed",
        _INSTANT,
        "When it was last seen before another one was, so that it changed between this time and `valid_to`; null if "
        "it still held at the latest look.",
    ),
)
ACCOUNT_HISTORY_SCHEMA = schema_of(ACCOUNT_HISTORY_COLUMNS)
ACCOUNT_HISTORY_KEY_COLUMNS = ("did", "aspect", "valid_from")
_SEEN_SCHEMA = pl.Schema(
    {"did": pl.String(), "aspect": pl.String(), "value": pl.String(), "seen_at": _INSTANT}
)
_RESOLVED = DirectoryState.RESOLVED.value


def account_history(ledger: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Return the history (ACCOUNT_HISTORY_SCHEMA), sorted; `ledger` as of `read_ledger`.

    `answers` are what the directory has said (`directory.history.ANSWERS_SCHEMA`), the latest with `last_seen`.
    """
    seen = pl.concat([_of_attempts(ledger), _of_answers(answers)]).sort("did", "aspect", "seen_at", "value")
    # By the order of the rows: to look at accounts one by one would take minutes.
    marked = seen.with_columns(is_first=is_another("did", "aspect", "value")).with_columns(
        is_last=pl.col("is_first").shift(-1, fill_value=True)
    )
    confirmed = marked.filter("is_last")["seen_at"].alias("last_confirmed")
    is_followed = ~is_another("did", "aspect").shift(-1, fill_value=True)
    stretches = (
        marked.filter("is_first")
        .with_columns(confirmed)
        .with_columns(is_followed=is_followed)
        .with_columns(
            valid_from="seen_at",
            valid_to=pl.when("is_followed").then(pl.col("seen_at").shift(-1)),
            last_confirmed=pl.when("is_followed").then("last_confirmed"),
        )
    )
    return stretches.select(ACCOUNT_HISTORY_SCHEMA.names()).cast(ACCOUNT_HISTORY_SCHEMA)


def state_times(ledger: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Return every time that an account was seen in a state: `did, value, seen_at`, sorted."""
    seen = pl.concat([_of_attempts(ledger), _of_answers(answers)])
    return seen.filter(aspect=Aspect.STATE.value).drop("aspect").sort("did", "seen_at", "value")


def _of_attempts(ledger: pl.DataFrame) -> pl.DataFrame:
    answered = ledger.filter(pl.col("outcome") != Outcome.FAILED.value)
    state = pl.col("outcome").replace({Outcome.UNCHANGED.value: Outcome.COMPLETE.value})
    return pl.concat(
        [
            _seen(answered, Aspect.STATE, state, "fetched_at"),
            _seen(answered, Aspect.HOST, "pds_host", "fetched_at"),
        ]
    )


def _of_answers(answers: pl.DataFrame) -> pl.DataFrame:
    """Say what was seen by the first and the last of the answers that were all the same."""
    resolved = answers.filter(pl.col("state") == _RESOLVED)
    # That a document names a host says nothing of what the host says of the account.
    others = answers.filter(pl.col("state") != _RESOLVED)
    state = pl.when(pl.col("state") == TOMBSTONED).then(pl.lit(TOMBSTONED)).otherwise(pl.lit(UNRESOLVED))
    parts = [_SEEN_SCHEMA.to_frame()]
    for time in ("first_seen", "last_seen"):
        parts += [
            _seen(others, Aspect.STATE, state, time),
            _seen(resolved, Aspect.HOST, "pds_host", time),
            _seen(resolved, Aspect.HANDLE, "handle", time),
        ]
    return pl.concat(parts).unique(maintain_order=True)


def _seen(rows: pl.DataFrame, aspect: Aspect, value: str | pl.Expr, time: str) -> pl.DataFrame:
    told = rows.select("did", aspect=pl.lit(aspect.value), value=value, seen_at=time)
    return told.select(_SEEN_SCHEMA.names()).cast(_SEEN_SCHEMA)


def misfits(history: pl.DataFrame) -> int:
    """Count the rows that do not follow each other: what is over must end where the next begins, with another value."""
    is_followed = ~is_another("did", "aspect").shift(-1, fill_value=True)
    following = pl.when(is_followed).then(pl.col("valid_from").shift(-1))
    same = pl.col("value").eq_missing(pl.col("value").shift(-1)) & is_followed
    in_order = (
        pl.col("valid_to").eq_missing(following)
        & (pl.col("last_confirmed") <= pl.col("valid_to")).fill_null(value=True)
        & (pl.col("valid_from") <= pl.col("last_confirmed").fill_null(pl.col("valid_from")))
    )
    return history.filter(~in_order | same).height
