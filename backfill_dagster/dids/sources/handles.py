"""Accounts by their handles."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.entries import ENTRIES_SCHEMA
from backfill_dagster.dids.sources.files import Columns, SourceFile, read_text
from backfill_dagster.dids.sources.listed import connections_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from backfill_dagster.config.sources import HandlesSource
    from backfill_dagster.dids.entries import SourceAccess

logger = logging.getLogger(__name__)

# Handles that are looked up between two words on how far it is; the last of them are waited for.
_AT_ONCE = 1_000


class HandleEntries:
    """The DIDs that handles stand for; one that stands for none is rejected with a value of HandleRejection."""

    needs_network = True

    def __init__(self, config: HandlesSource, field: str) -> None:
        self._config = config
        self._field = field

    async def entries(self, access: SourceAccess) -> AsyncIterator[pl.DataFrame]:
        """Yield the handles with their DIDs, in the order of the list."""
        resolver = connections_of(access).handles
        done = 0
        for handles in self._listed():
            answers = await resolver.resolve_all(handles.to_list())
            done += len(answers)
            logger.info("%s: %s handles looked up", self._field, f"{done:,}")
            yield pl.DataFrame(
                {
                    "input": handles,
                    "entry": [answer.did for answer in answers],
                    "reason": [answer.rejection and answer.rejection.value for answer in answers],
                },
                schema=ENTRIES_SCHEMA,
            )

    def describe(self) -> str:
        """Name the file, or the field that lists them."""
        path = self._config.path
        return f"{self._field}.handles" if path is None else SourceFile.local(path, self._field).place

    def stamp(self) -> None:
        """Return None: what a handle stands for can change at any time."""

    def _listed(self) -> Iterator[pl.Series]:
        if self._config.path is not None:
            file = SourceFile.local(self._config.path, self._field)
            batches = read_text(file, Columns(("handle",), self._field))
        else:
            batches = iter([pl.DataFrame({"handle": self._config.handles}, schema={"handle": pl.String})])
        for batch in batches:
            for part in batch.iter_slices(_AT_ONCE):
                yield part.to_series()
