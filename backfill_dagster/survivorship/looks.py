"""What was said of a study's accounts, by ranges of their DIDs: by their hosts, and by the directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backfill_dagster.dids.did_ranges import DidRange, dealt_by_range
from backfill_dagster.directory.history import ANSWERS_SCHEMA
from backfill_dagster.repos.ledger_lots import ledger_by_range
from backfill_dagster.study_files import directory_answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

    from backfill_dagster.storage import StudyStorage

# Ranges whose answers are looked for at once: to find them takes longer than to hold them.
_RANGES_AT_ONCE = 2


class Looks(NamedTuple):
    """What is known of the accounts of a range of DIDs.

    Of their attempts, as of `read_ledger`; and of what the directory has said (`directory.history.ANSWERS_SCHEMA`).
    """

    ledger: pl.DataFrame
    answers: pl.DataFrame


def looks_by_range(storage: StudyStorage, ranges: Sequence[DidRange]) -> Iterator[Looks]:
    """Yield what is known of each range, of which one is held at a time; raises StorageError."""
    with ledger_by_range(storage, ranges) as ledger:
        for first in range(0, len(ranges), _RANGES_AT_ONCE):
            some = ranges[first : first + _RANGES_AT_ONCE]
            found = directory_answers(storage, DidRange(some[0].first, some[-1].end))
            answers = dict(dealt_by_range(found, some))
            for dids in some:
                yield Looks(ledger(dids), answers.get(dids, ANSWERS_SCHEMA.to_frame()))
