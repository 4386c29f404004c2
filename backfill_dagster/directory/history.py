"""What the directory says over time: since when an account has been in its state, and who is still to be looked up.

A row of the directory is written anew whenever its DID is looked up again, so that its `resolved_at` says when that
was last seen, and not when it began.
"""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from backfill_dagster.directory.documents import DirectoryState


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
