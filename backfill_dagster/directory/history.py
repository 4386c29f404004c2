"""Since when an account has been in the state in which the directory has it.

A row of the directory is written anew whenever its DID is looked up again, so that its `resolved_at` says when that
was last seen, and not when it began.
"""

from __future__ import annotations

import polars as pl


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
