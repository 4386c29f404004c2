"""What every source of a list offers: its entries, in batches, and a word on what it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import polars as pl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backfill_dagster.connections import Connections

BATCH_ROWS = 65_536

ENTRIES_SCHEMA = pl.Schema({"input": pl.String, "entry": pl.String, "reason": pl.String})
"""Entries as a source gives them: what stands in it, what that stands for, and why if it stands for nothing.

`input` and `entry` differ where the source has to look up what it lists, as with handles. What has a `reason` is left
out for it; its `entry` is null, unless it is known what it would stand for. What an entry is worth is not the source's
to judge.
"""


@dataclass(frozen=True, slots=True)
class SourceAccess:
    """What a source may use to read: a folder for files that it has to download, and connections to servers.

    `connections` is None where no source needs servers. `given` counts the entries of each source that is read, by its
    field in the YAML: of a union or difference, and of what it is made of.
    """

    scratch: Path
    connections: Connections | None = None
    given: Counter[str] = field(default_factory=Counter)


class EntrySource(Protocol):
    """A list of DIDs or of AT-URIs that is read from somewhere, in the same order each time."""

    @property
    def needs_network(self) -> bool:
        """Tell whether servers of the AT Protocol are asked for it."""

    def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield the entries (ENTRIES_SCHEMA) in batches of at most BATCH_ROWS.

        Raises SourceError, at the latest when the source is read to where it cannot be.
        """

    def describe(self) -> str:
        """Name the source for a message: its field in the YAML, and its path or address if it has one."""

    def stamp(self) -> str | None:
        """Return what changes whenever the source may have changed, without reading it; None if nothing tells.

        Raises SourceError if the source is not there.
        """


def as_entries(values: pl.Series) -> pl.DataFrame:
    """Return entries that stand for themselves."""
    return pl.DataFrame({"input": values, "entry": values}).with_columns(reason=pl.lit(None, pl.String))


async def counted_entries(
    source: EntrySource, field: str, access: SourceAccess
) -> AsyncIterator[pl.DataFrame]:
    """Yield a source's entries, and count them under its field in the YAML."""
    access.given[field] += 0
    async for batch in source.entries(access):
        access.given[field] += batch.height
        yield batch
