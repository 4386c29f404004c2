"""The ledger by ranges of DIDs: what is made of it account by account is made of one range after the other.

The ledger of a large study, with what is sorted and joined of it, would be the largest thing that a run holds. This
way memory is bounded by the accounts of a range, whatever their number in all.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range, did_ranges
from backfill_dagster.repos.packs import LEDGER_ORDER, LEDGER_SCHEMA, read_attempts, read_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from backfill_dagster.dids.did_ranges import DidRange
    from backfill_dagster.storage import StudyStorage

# Accounts of a range: some 3 MB with all that is known of them, and several times as much while that is joined.
ACCOUNTS_AT_ONCE = 10_000
# More ranges would only make each pack's share of one smaller.
_MOST_RANGES = 256
# Attempts that are dealt out at once.
_DEALT_AT_ONCE = 25_000


def account_ranges(accounts: int) -> list[DidRange]:
    """Cut all DIDs into the ranges by which so many accounts are worked on, in their order."""
    return did_ranges(accounts, max(ACCOUNTS_AT_ONCE, -(-accounts // _MOST_RANGES)))


@contextmanager
def ledger_by_range(
    storage: StudyStorage, ranges: Sequence[DidRange]
) -> Iterator[Callable[[DidRange], pl.DataFrame]]:
    """Lend the ledger, as of `read_ledger`, by ranges that follow each other; each pack is read once.

    Raises StorageError.
    """
    if len(ranges) == 1:
        ledger = read_ledger(storage)
        yield lambda _: ledger
        return
    with storage.scratch() as scratch, DealtRows(scratch / "ledger.arrow", LEDGER_SCHEMA) as dealt:
        for attempts in _gathered(read_attempts(storage)):
            for dids, some in dealt_by_range(attempts, ranges):
                dealt.add(dids, some)
        yield lambda dids: dealt.of(dids).sort(LEDGER_ORDER)


def _gathered(parts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Put parts together: what it costs to deal out some rows hardly depends on how many they are."""
    held: list[pl.DataFrame] = []
    for part in parts:
        held.append(part)
        if sum(some.height for some in held) >= _DEALT_AT_ONCE:
            yield pl.concat(held)
            held.clear()
    if held:
        yield pl.concat(held)
