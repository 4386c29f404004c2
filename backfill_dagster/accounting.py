"""Stage 5, the table of accounts: what became of each, counted by reading the final files again.

It is made of one range of DIDs after the other, so that memory is bounded by the accounts of a range.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dictionary.written import write_dictionary
from backfill_dagster.dids.did_ranges import dealt_by_range
from backfill_dagster.directory.documents import DirectoryState
from backfill_dagster.fingerprints import records_fingerprint
from backfill_dagster.records.conversion import read_counts
from backfill_dagster.records.tables import COUNTS_SCHEMA
from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.repos.snapshots import PENDING, UNRESOLVED, snapshots
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import (
    ACCOUNTS_KEY,
    DIRECTORY_KEY,
    SOURCE_KEY,
    account_lots,
    lot_ranges,
    study_tables,
)
from backfill_dagster.tables.account_sums import AccountSums, RunningSums
from backfill_dagster.tables.accounts import (
    accounts_schema,
    misplaced,
    summarise,
    unaccounted,
    unreconciled,
)
from backfill_dagster.tables.build import table_keys
from backfill_dagster.tables.kept import store_kept, stored_kept
from backfill_dagster.tables.ledger import ledger_key
from backfill_dagster.tables.repeated_uris import count_repeated_uris
from backfill_dagster.workers import SMALL_BYTES, worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.did_ranges import DidRange

# In the metadata of the accounts' file: what it was made of.
_MADE_OF = "made_of"
# Packs whose counts are read at once: each has some of the accounts of every range.
_PACKS_AT_ONCE = 128
_COUNTS_SCHEMA = pl.Schema(
    {
        **{name: COUNTS_SCHEMA[name] for name in ("did", "table", "fate", "reason", "records")},
        "pack": pl.String(),
    }
)
# Hosts that a finding names.
_NAMED_HOSTS = 10


class BuiltLot(NamedTuple):
    """Rows of the table of accounts, the DIDs that it must have there, and what is `misplaced` of theirs."""

    accounts: pl.DataFrame
    source: pl.DataFrame
    misplaced: pl.DataFrame


@dataclass(frozen=True, slots=True)
class AccountsBuild:
    """What the table of accounts that was written comes to, and what was found wrong, which names no account.

    `unreconciled` are the accounts whose records do not add up, and `unreconciled_hosts` the first of their hosts;
    `unaccounted` those that do not stand there once and in one state. `misplaced` counts by table the accounts of which
    it does not hold what was converted; `repeated_uris` the rows of tables that stand there more than once.
    """

    sums: AccountSums
    unreconciled: int
    unreconciled_hosts: tuple[str, ...]
    unaccounted: int
    misplaced: Counter[str]
    repeated_uris: int


class Told:
    """What is told of accounts that are built lot by lot; `through` hands their rows on."""

    def __init__(self) -> None:
        self._sums = RunningSums()
        self._unreconciled = 0
        self._hosts: list[str] = []
        self._unaccounted = 0
        self._misplaced: Counter[str] = Counter()

    def through(self, lots: Iterable[BuiltLot]) -> Iterator[pl.DataFrame]:
        """Take lots in the order of DIDs, none twice, and yield the accounts of each."""
        for lot in lots:
            self._sums.add(lot.accounts)
            off = unreconciled(lot.accounts)
            self._unreconciled += off.height
            hosts = {*self._hosts, *off["pds_host"].drop_nulls()}
            self._hosts = nsmallest(_NAMED_HOSTS, hosts)
            self._unaccounted += unaccounted(lot.accounts, lot.source).height
            self._misplaced.update(lot.misplaced["table"])
            yield lot.accounts

    def build(self, repeated_uris: int) -> AccountsBuild:
        """Return it."""
        return AccountsBuild(
            sums=self._sums.sums(),
            unreconciled=self._unreconciled,
            unreconciled_hosts=tuple(self._hosts),
            unaccounted=self._unaccounted,
            misplaced=self._misplaced,
            repeated_uris=repeated_uris,
        )


def build_accounts(study: Study) -> AccountsBuild:
    """Stage 5: write the table of accounts, counting the records kept by reading the final files again."""
    storage = StudyStorage(study.location)
    made_of = accounts_inputs(study)
    ranges, told = lot_ranges(storage), Told()
    with storage.scratch() as scratch, _dealt_counts(storage, ranges, scratch / "counts.arrow") as counts:
        files, repeated = _recount(study, ranges, scratch)
        with stored_kept(files) as kept:
            storage.write_parts(
                ACCOUNTS_KEY,
                told.through(_lots(study, ranges, counts, kept)),
                accounts_schema(study_tables(study)),
                {_MADE_OF: made_of},
            )
    write_dictionary(study)
    return told.build(repeated)


def _lots(
    study: Study,
    ranges: Sequence[DidRange],
    counts: Callable[[DidRange], pl.DataFrame],
    kept: Callable[[int], pl.DataFrame],
) -> Iterator[BuiltLot]:
    """Yield the accounts of each range: what was counted when they were converted, and what the final files hold."""
    for place, lot in enumerate(account_lots(study, with_unknown=True, ranges=ranges)):
        current = snapshots(lot.directory, lot.ledger).select("did", "pack")
        counted = counts(lot.dids)
        kept_here = kept(place)
        accounts = summarise(
            lot.source,
            lot.directory,
            lot.ledger,
            counted,
            kept_here,
            tables=study_tables(study),
            hide_inactive=study.inactive_accounts != "keep",
        )
        yield BuiltLot(accounts, lot.source, misplaced(accounts, current, counted, kept_here))


@contextmanager
def _dealt_counts(
    storage: StudyStorage, ranges: Sequence[DidRange], path: Path
) -> Iterator[Callable[[DidRange], pl.DataFrame]]:
    """Lend the counts of all conversions by ranges; each pack's are read once."""
    packs = [(host, pack) for host, pack, _ in pack_keys(storage)]
    with DealtRows(path, _COUNTS_SCHEMA) as dealt:
        for first in range(0, len(packs), _PACKS_AT_ONCE):
            counts = read_counts(storage, packs[first : first + _PACKS_AT_ONCE]).drop("collection")
            for dids, some in dealt_by_range(counts, ranges):
                dealt.add(dids, some)
        yield dealt.of


def _recount(study: Study, ranges: Sequence[DidRange], scratch: Path) -> tuple[list[Path], int]:
    """Read all final files again: what they hold of each account (`store_kept`), and how many URIs are repeated."""
    storage = StudyStorage(study.location)
    sizes = {
        table: sum(storage.sizes_of(table_keys(storage, table)).values()) for table in study_tables(study)
    }
    # What takes longest first.
    tables = sorted(sizes, key=lambda table: -sizes[table])
    if sum(sizes.values()) < SMALL_BYTES:
        repeated = sum(count_repeated_uris(storage, table) for table in tables)
        return [store_kept(storage, tables, ranges, scratch)], repeated
    with worker_pool(study.processing.worker_count) as workers:
        counting = [
            (
                workers.submit(store_kept, storage, [table], ranges, scratch),
                workers.submit(count_repeated_uris, storage, table),
            )
            for table in tables
        ]
        return [kept.result() for kept, _ in counting], sum(number.result() for _, number in counting)


def accounts_are_stale(study: Study) -> bool:
    """Tell whether anything that the table of accounts is made of is another than when it was written."""
    storage = StudyStorage(study.location)
    if not storage.exists(ACCOUNTS_KEY):
        return True
    return storage.metadata(ACCOUNTS_KEY).get(_MADE_OF) != accounts_inputs(study)


def accounts_inputs(study: Study) -> str:
    """Return the identity of all that the table of accounts is made of; content, not time."""
    storage = StudyStorage(study.location)
    tables = study_tables(study)
    files = [SOURCE_KEY, DIRECTORY_KEY, *(ledger_key(table) for table in tables)]
    digests = [storage.sha256(key) if storage.exists(key) else None for key in files]
    # A pack's name is made of its content.
    packs = [key for *_, key in pack_keys(storage)]
    settings = [records_fingerprint(study), study.inactive_accounts, study.fetch]
    told = json.dumps([digests, packs, tables, *settings])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def unfinished_accounts(study: Study) -> tuple[int, int]:
    """Count the source's accounts that the PLC directory failed to tell of, and those not attempted yet."""
    accounts = StudyStorage(study.location).scan_as_it_is(ACCOUNTS_KEY).filter("in_source")
    failures = [state.value for state in DirectoryState if not state.settled]
    unknown = (pl.col("state") == UNRESOLVED) & pl.col("reason").is_in(failures)
    at_plc = pl.col("did").str.starts_with("did:plc:")
    numbers = accounts.select(unknown=(unknown & at_plc).sum(), pending=(pl.col("state") == PENDING).sum())
    [told] = StudyStorage(study.location).collect([numbers], [ACCOUNTS_KEY], engine="streaming")
    return int(told["unknown"].item()), int(told["pending"].item())
