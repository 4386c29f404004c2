"""What was seen of a study's records and accounts over time, brought up to date with its packs and its directory.

All of it is made of one range of accounts, or of some packs, after the other: memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dealt_rows import DealtRows
from backfill_dagster.dids.did_ranges import dealt_by_range, did_ranges
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import lot_ranges
from backfill_dagster.survivorship import account_history as history
from backfill_dagster.survivorship import record_changes as changes
from backfill_dagster.survivorship.chain_lots import ChainLots, Kept
from backfill_dagster.survivorship.chains import snapshot_chains
from backfill_dagster.survivorship.comparison import (
    UNACCOUNTED,
    Comparison,
    compare,
    comparison_key,
    comparisons,
    is_compared,
)
from backfill_dagster.survivorship.inventory import (
    INVENTORY_SCHEMA,
    has_inventory,
    inventory_key,
    take_inventory,
)
from backfill_dagster.survivorship.looks import looks_by_range
from backfill_dagster.survivorship.person_time import watched
from backfill_dagster.survivorship.rates import (
    RATES_SCHEMA,
    AccountTime,
    account_rates,
    account_time,
    deletion_rates,
)
from backfill_dagster.survivorship.stored import (
    ACCOUNT_HISTORY_KEY,
    DELETION_RATES_KEY,
    FOLDER,
    RECORD_CHANGES_FOLDER,
    RowsDigest,
    discard,
    is_made_of,
    store,
    store_news,
    told_of,
)
from backfill_dagster.survivorship.watched_by_account import WatchedByAccount
from backfill_dagster.tables.accounts import INACTIVE_STATES
from backfill_dagster.workers import SMALL_BYTES, work_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from backfill_dagster.config.study import Study
    from backfill_dagster.dids.did_ranges import DidRange
    from backfill_dagster.stores.location import Location

# Raised whenever the same packs would make other tables.
_VERSION = 2
# Changes that are put in order at once; some 200 bytes each.
_CHANGES_AT_ONCE = 1_000_000
# Packs whose inventories are read at once.
_PACKS_AT_ONCE = 64
# Packs whose comparisons are read at once.
_COMPARISONS_AT_ONCE = 256
_SUMS = ("rows", "misfits", "repeated")
_ENDED_SCHEMA = pl.Schema({"aspect": pl.String(), "state": pl.String(), "ended": pl.UInt32()})


@dataclass(frozen=True, slots=True)
class RecordChanges:
    """The table of record changes as it is stored, and what is wrong with it.

    `compared` counts the pairs of snapshots, `by_ending` the rows (`collection, ended, records`). `unaccounted` counts
    pairs whose sums do not hold, `misfits` rows whose times are out of order, `repeated` rows that stand twice.
    """

    rows: int
    files: int
    compared: int
    by_ending: pl.DataFrame
    unaccounted: int
    misfits: int
    repeated: int


@dataclass(frozen=True, slots=True)
class AccountHistory:
    """How many rows the history of accounts has as it was stored, and how many of them are out of order.

    `ended` counts those that are over (`aspect, state, ended`), sorted: states by name, hosts and handles without.
    """

    rows: int
    ended: pl.DataFrame
    misfits: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A comparison by its pack and its identity alone: without its accounts."""

    pds_host: str
    pack: str
    identity: str

    @property
    def key(self) -> str:
        return comparison_key(self.pds_host, self.pack)


def build_record_changes(study: Study) -> RecordChanges:
    """Compare the snapshots that have not been compared, and bring the table and the rates up to date with them.

    What is up to date stays as it is. Raises StorageError.
    """
    storage = StudyStorage(study.location)
    ranges = lot_ranges(storage)
    with storage.scratch() as scratch, ChainLots(scratch) as chains:
        states, time = RowsDigest(), AccountTime()
        for looks in looks_by_range(storage, ranges):
            chains.add(snapshot_chains(looks.ledger))
            seen = history.state_times(looks.ledger, looks.answers)
            states.add(seen)
            time = time.and_also(account_time(seen, sorted(INACTIVE_STATES)))
        wanted = _look_into_packs(study, chains)
        identities = [each.identity for each in wanted]
        identity = _identity(identities, [each.key for each in wanted])
        if not _is_whole(storage, identity):
            _write_changes(storage, scratch, chains, identity)
        made_of = _identity([chains.spans_digest, states.hexdigest()], identities)
        if not is_made_of(storage, DELETION_RATES_KEY, made_of):
            rates = RATES_SCHEMA.to_frame()
            if chains.packs(Kept.WATCHED):
                rates = pl.concat([_rates_of_records(storage, scratch, chains, ranges), account_rates(time)])
            store(storage, DELETION_RATES_KEY, rates, made_of)
        return _summed(storage, chains.compared, wanted)


def build_account_history(study: Study) -> AccountHistory:
    """Bring the history of accounts up to date; raises StorageError."""
    storage = StudyStorage(study.location)
    found: list[AccountHistory] = []

    def parts() -> Iterator[pl.DataFrame]:
        for looks in looks_by_range(storage, lot_ranges(storage)):
            rows = history.account_history(looks.ledger, looks.answers)
            found.append(_told_of_history(rows))
            yield rows

    store_news(storage, ACCOUNT_HISTORY_KEY, parts(), history.ACCOUNT_HISTORY_SCHEMA)
    return AccountHistory(
        sum(part.rows for part in found),
        _ended(pl.concat(part.ended for part in found)),
        sum(part.misfits for part in found),
    )


def _told_of_history(rows: pl.DataFrame) -> AccountHistory:
    # Handles and hosts are names: of them only the number is told.
    state = pl.when(pl.col("aspect") == history.Aspect.STATE.value).then("value")
    over = rows.drop_nulls("valid_to").select("aspect", state=state, ended=pl.lit(1))
    return AccountHistory(rows.height, _ended(over), history.misfits(rows))


def _ended(rows: pl.DataFrame) -> pl.DataFrame:
    kinds = ["aspect", "state"]
    return rows.cast(_ENDED_SCHEMA).group_by(kinds).agg(pl.col("ended").sum()).sort(kinds)


def _look_into_packs(study: Study, chains: ChainLots) -> list[_Wanted]:
    """Take the inventories, and make the comparisons, that are not stored; and remove those of other packs.

    Returns all comparisons that are wanted, sorted by their packs.
    """
    storage, packs = StudyStorage(study.location), chains.packs()
    own = {inventory_key(*pack) for pack in packs}
    own |= {comparison_key(*pack) for pack in chains.packs(Kept.COMPARED)}
    discard(storage, [key for key in storage.keys(FOLDER) if key not in own])
    wanted, uncompared = [], set()
    for each in _comparisons(chains):
        wanted.append(_Wanted(each.pds_host, each.pack, each.identity))
        if not is_compared(storage, each):
            uncompared.add(each.key)
    unknown = [pack for pack in packs if not has_inventory(storage, *pack)]
    if not unknown and not uncompared:
        return wanted
    # Made again when their turn comes: each names its accounts.
    missing = (each for each in _comparisons(chains) if each.key in uncompared)
    tasks: Iterable[_Task] = chain(
        ((take_inventory, pack) for pack in unknown), ((compare, (each,)) for each in missing)
    )
    is_small = sum(storage.sizes("repos").values()) < SMALL_BYTES
    for _ in work_on(study.location, _do, tasks, 0 if is_small else study.processing.worker_count):
        pass
    return wanted


_Task = tuple["Callable[..., None]", tuple[object, ...]]


def _do(root: Location, task: _Task) -> None:
    work, arguments = task
    work(root, *arguments)


def _comparisons(chains: ChainLots) -> Iterator[Comparison]:
    for some in chains.by_packs(Kept.COMPARED, _COMPARISONS_AT_ONCE):
        yield from comparisons(some)


def _identity(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()[:24]


def _is_whole(storage: StudyStorage, identity: str) -> bool:
    """Tell whether the table's files are all there, and made of just this."""
    keys = storage.keys(RECORD_CHANGES_FOLDER)
    return bool(keys) and all(is_made_of(storage, key, f"{identity} {len(keys)}") for key in keys)


def _write_changes(storage: StudyStorage, scratch: Path, chains: ChainLots, identity: str) -> None:
    events = changes.count_events(storage, chains.packs(Kept.COMPARED))
    ranges = did_ranges(events, _CHANGES_AT_ONCE)
    discard(storage, storage.keys(RECORD_CHANGES_FOLDER)[len(ranges) :])
    with DealtRows(scratch / "events.arrow", changes.DATED_EVENTS_SCHEMA) as dealt:
        for rows in _events(storage, chains):
            for dids, some in dealt_by_range(rows, ranges):
                dealt.add(dids, some)
        for number, dids in enumerate(ranges):
            key = f"{RECORD_CHANGES_FOLDER}/part-{number:05d}.parquet"
            store(storage, key, changes.record_changes(dealt.of(dids)), f"{identity} {len(ranges)}")


def _events(storage: StudyStorage, chains: ChainLots) -> Iterator[pl.DataFrame]:
    return changes.read_events(storage, chains.by_packs(Kept.COMPARED, _COMPARISONS_AT_ONCE))


def _rates_of_records(
    storage: StudyStorage, scratch: Path, chains: ChainLots, ranges: Sequence[DidRange]
) -> pl.DataFrame:
    with WatchedByAccount(scratch, ranges) as by_account:
        records = watched(_inventories(storage, chains), _events(storage, chains), by_account)
        return deletion_rates(records)


def _inventories(storage: StudyStorage, chains: ChainLots) -> Iterator[pl.DataFrame]:
    """Yield what the snapshots that were watched hold, with how long; some packs at a time."""
    of = pl.concat_str("pds_host", pl.lit("\n"), "pack")
    for own in chains.by_packs(Kept.WATCHED, _PACKS_AT_ONCE):
        packs = own.select("pds_host", "pack").unique().rows()
        keys = {inventory_key(*pack): "\n".join(pack) for pack in packs}
        rows = storage.scan_named(keys, INVENTORY_SCHEMA, "of")
        [found] = storage.collect([rows], keys)
        times = own.select("did", "fetched_at", "confirmed_at", "confirmations", "next_at", of=of)
        yield found.join(times, on=["did", "of"]).drop("of")


def _summed(storage: StudyStorage, compared: int, wanted: Sequence[_Wanted]) -> RecordChanges:
    """Read the table's files again: what they hold, and what is wrong with them."""
    totals = dict.fromkeys(_SUMS, 0)
    kinds = ["collection", "ended"]
    endings = [pl.DataFrame(schema={"collection": pl.String, "ended": pl.String, "records": pl.UInt32})]
    keys = storage.keys(RECORD_CHANGES_FOLDER)
    for key in keys:
        rows = storage.read(key)
        totals["rows"] += rows.height
        totals["misfits"] += changes.misfits(rows)
        totals["repeated"] += changes.repeated(rows)
        endings.append(rows.group_by(kinds).agg(records=pl.len().cast(pl.UInt32)))
    return RecordChanges(
        files=len(keys),
        compared=compared,
        by_ending=pl.concat(endings).group_by(kinds).agg(pl.col("records").sum()).sort(kinds),
        unaccounted=sum(int(told_of(storage, each.key).get(UNACCOUNTED, 0)) for each in wanted),
        **totals,
    )
