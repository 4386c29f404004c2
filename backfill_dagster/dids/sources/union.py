"""What is in any of several sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.dids.entries import counted_entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import polars as pl

    from backfill_dagster.dids.entries import EntrySource, SourceAccess


class UnionEntries:
    """The entries of several sources, one source after the other; what stands in two of them comes twice."""

    def __init__(self, members: Sequence[EntrySource], field: str) -> None:
        self._members = members
        self._field = f"{field}.sources"

    @property
    def needs_network(self) -> bool:
        """Tell whether any of them does."""
        return any(member.needs_network for member in self._members)

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield the entries of all of them."""
        for number, member in enumerate(self._members):
            async for batch in counted_entries(member, f"{self._field}.{number}", access):
                yield batch

    def describe(self) -> str:
        """Name the field that lists them."""
        return self._field

    def stamp(self) -> str | None:
        """Return what changes whenever one of them may have changed; None if one cannot tell."""
        return joint_stamp(self._members)


def joint_stamp(sources: Sequence[EntrySource]) -> str | None:
    """Return what changes whenever one of these sources may have changed; None if one cannot tell."""
    stamps = []
    for source in sources:
        stamp = source.stamp()
        if stamp is None:
            return None
        stamps.append(stamp)
    return repr(stamps)
