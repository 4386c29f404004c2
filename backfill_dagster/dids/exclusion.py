"""What is to be left out of a list, whatever else stands in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.entries import counted_entries
from backfill_dagster.dids.handle_syntax import HandleRejection
from backfill_dagster.dids.syntax import DidRejection, comparable
from backfill_dagster.errors import SourceError

if TYPE_CHECKING:
    from backfill_dagster.dids.entries import EntrySource, SourceAccess

_PASSING = [reason.value for reason in HandleRejection if reason.passing]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Entries to leave out: each once, as `comparable` has it. `given` counts those that the source gave.

    `unknown` counts, by reason, those that stand for nothing, such as a handle that is nobody's: they leave out nobody.
    """

    entries: pl.Series
    given: int
    unknown: Counter[str]

    def withhold(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Reject the entries (ENTRIES_SCHEMA) of a batch that are to be left out."""
        excluded = pl.col("reason").is_null() & comparable(pl.col("entry")).is_in(self.entries.implode())
        reason = pl.when(excluded).then(pl.lit(DidRejection.EXCLUDED.value)).otherwise("reason")
        return batch.with_columns(reason=reason)


async def read_exclusion(source: EntrySource, field: str, access: SourceAccess) -> Exclusion:
    """Read a source, whose field in the YAML is given, as a list of what is to be left out.

    Raises SourceError if it cannot be read, or if it cannot be told now what one of its entries stands for: left out
    is then nothing less than all.
    """
    parts = [pl.Series("entry", [], dtype=pl.String)]
    unknown: Counter[str] = Counter()
    async for batch in counted_entries(source, field, access):
        usable = batch.filter(pl.col("reason").is_null())
        parts.append(usable.select(comparable(pl.col("entry")).drop_nulls()).to_series())
        unknown.update(dict(batch["reason"].drop_nulls().value_counts().iter_rows()))
    del unknown[DidRejection.EXCLUDED.value]
    waiting = sum(unknown[reason] for reason in _PASSING)
    if waiting:
        raise SourceError(
            f"{source.describe()}: {waiting:,} of its {access.given[field]:,} entries could not be looked up, and must "
            "not be collected by mistake; nothing is read before they can be. Run the same later, or give their DIDs"
        )
    return Exclusion(pl.concat(parts).unique(), access.given[field], unknown)
