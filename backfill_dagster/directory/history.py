"""What the directory says over time: since when an account has been in its state, and who is still to be looked up.

A row of the directory is written anew whenever its DID is looked up again, so that its `resolved_at` says when that
was last seen, and not when it began. What it said before would be lost: so each answer that differs from the one before
is kept, once, in a history beside it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.directory.documents import DirectoryState

STATE_SINCE = Column(
    "state_since",
    pl.Datetime("us", "UTC"),
    "When the state was first seen of those lookups that found no other between.",
    required=True,
)


ANSWER_COLUMNS = (
    Column("did", pl.String(), "The account's DID.", required=True),
    Column("state", pl.String(), "What its lookups came to.", required=True, words=(DirectoryState,)),
    Column("handle", pl.String(), "Handle that the DID document named."),
    Column("pds_host", pl.String(), "Host of the PDS that it named."),
    Column("first_seen", pl.Datetime("us", "UTC"), "When a lookup first gave this answer.", required=True),
    Column(
        "last_seen",
        pl.Datetime("us", "UTC"),
        "When one last gave it before another; null for the latest answer, which the directory has.",
    ),
)
ANSWERS_SCHEMA = schema_of(ANSWER_COLUMNS)
_SAID = ("state", "handle", "pds_host")
_SETTLED = [state.value for state in DirectoryState if state.settled]


def with_new_answers(
    answers: pl.DataFrame | None, earlier: pl.DataFrame | None, directory: pl.DataFrame
) -> pl.DataFrame:
    """Return the history (ANSWERS_SCHEMA), sorted, with what the directory says now; the same if that is nothing new.

    `earlier` is the directory before. A history that is yet to begin, begins with that. A failed lookup is no answer.
    """
    before = ANSWERS_SCHEMA.to_frame() if earlier is None else _said_by(earlier)
    known = before if answers is None else answers.select(ANSWERS_SCHEMA.names())
    now = _said_by(directory)
    latest = known.filter(pl.col("last_seen").is_null()).rename({name: f"known_{name}" for name in _SAID})
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"known_{name}")) for name in _SAID)
    is_known = pl.col("known_state").is_not_null()
    new = now.join(latest.drop("first_seen", "last_seen"), on="did", how="left").filter(~is_known | differs)
    # Of what is over, the directory before said when it was last seen.
    ended = before.select("did", *_SAID, until="first_seen")
    is_over = pl.col("last_seen").is_null() & pl.col("did").is_in(new["did"].implode())
    closed = known.join(ended, on=["did", *_SAID], how="left", nulls_equal=True).with_columns(
        last_seen=pl.when(is_over).then(pl.max_horizontal("first_seen", "until")).otherwise("last_seen")
    )
    return (
        pl.concat([closed.select(ANSWERS_SCHEMA.names()), new.select(ANSWERS_SCHEMA.names())])
        .cast(ANSWERS_SCHEMA)
        .sort("did", "first_seen")
    )


def dated_answers(answers: pl.DataFrame | None, directory: pl.DataFrame) -> pl.DataFrame:
    """Return the history (ANSWERS_SCHEMA) with the latest sighting of the latest answers, too, which `directory` has.

    Without a history, of a study of an older version, that is all that is known.
    """
    now = _said_by(directory)
    if answers is None:
        return now.with_columns(last_seen="first_seen")
    seen = now.select("did", *_SAID, until="first_seen")
    return (
        answers.join(seen, on=["did", *_SAID], how="left", nulls_equal=True, maintain_order="left")
        .with_columns(last_seen=pl.coalesce("last_seen", pl.max_horizontal("first_seen", "until")))
        .select(ANSWERS_SCHEMA.names())
    )


def _said_by(directory: pl.DataFrame) -> pl.DataFrame:
    """Return the answers in a directory (ANSWERS_SCHEMA), each as if it had been given then for the first time."""
    settled = directory.filter(pl.col("state").is_in(_SETTLED))
    told = settled.select("did", *_SAID, first_seen="resolved_at", last_seen=pl.lit(None))
    return told.cast(ANSWERS_SCHEMA)


def with_state_since(directory: pl.DataFrame, earlier: pl.DataFrame | None) -> pl.DataFrame:
    """Add `state_since`: when the state of each row was first seen of those lookups that found no other between.

    `earlier` is the directory before, with that column or, if it is of an older version, without.
    """
    if earlier is None:
        return directory.with_columns(state_since="resolved_at")
    known_since = pl.coalesce("^state_since$", "resolved_at")
    before = earlier.select("did", "state", since=known_since)
    return (
        directory.drop("state_since", strict=False)
        .join(before, on=["did", "state"], how="left", maintain_order="left")
        .with_columns(state_since=pl.coalesce("since", "resolved_at"))
        .drop("since")
    )


def with_unasked(directory: pl.DataFrame, dids: pl.Series) -> pl.DataFrame:
    """Add a row, in the state `not_asked`, for each of these DIDs that the directory has none of.

    There are some if the source was read again and the lookups are still to come, or were interrupted.
    """
    unknown = dids.unique(maintain_order=True).to_frame("did").join(directory, on="did", how="anti")
    rows = unknown.select(
        "did",
        state=pl.lit(DirectoryState.NOT_ASKED.value),
        reason=pl.lit("its lookup is still to come"),
        # Later than nothing: whatever else is known of the account outweighs it.
        resolved_at=pl.lit(datetime.min.replace(tzinfo=UTC), pl.Datetime("us", "UTC")),
    )
    return pl.concat([directory, rows], how="diagonal")
