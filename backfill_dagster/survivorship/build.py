"""What was seen of a study's records and accounts over time, brought up to date with its packs and its directory."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.dids.did_ranges import did_ranges
from backfill_dagster.repos.packs import read_ledger
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import directory_answers
from backfill_dagster.survivorship import account_history as history
from backfill_dagster.survivorship import record_changes as changes
from backfill_dagster.survivorship.chains import snapshot_chains
from backfill_dagster.survivorship.comparison import UNACCOUNTED, compare, comparisons, is_compared
from backfill_dagster.survivorship.inventory import (
    INVENTORY_SCHEMA,
    has_inventory,
    inventory_key,
    take_inventory,
)
from backfill_dagster.survivorship.person_time import watched
from backfill_dagster.survivorship.rates import RATES_SCHEMA, account_rates, deletion_rates
from backfill_dagster.survivorship.stored import (
    ACCOUNT_HISTORY_KEY,
    DELETION_RATES_KEY,
    FOLDER,
    RECORD_CHANGES_FOLDER,
    digest_of,
    discard,
    is_made_of,
    store,
    told_of,
)
from backfill_dagster.tables.accounts import INACTIVE_STATES
from backfill_dagster.workers import worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill_dagster.config.study import Study
    from backfill_dagster.survivorship.comparison import Comparison

# Raised whenever the same packs would make other tables.
_VERSION = 2
# Changes that are put in order at once; some 200 bytes each.
_CHANGES_AT_ONCE = 1_000_000
# Packs whose inventories are read at once.
_PACKS_AT_ONCE = 64
# Files that are looked through sooner than worker processes are started.
_SMALL_BYTES = 64 * 2**20
_SUMS = ("rows", "misfits", "repeated")


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
    """The history of accounts as it was stored, and how many of its rows are out of order."""

    rows: pl.DataFrame
    misfits: int


def build_record_changes(study: Study) -> RecordChanges:
    """Compare the snapshots that have not been compared, and bring the table and the rates up to date with them.

    What is up to date stays as it is. Raises StorageError.
    """
    storage = StudyStorage(study.location)
    ledger = read_ledger(storage)
    chains = snapshot_chains(ledger)
    wanted = comparisons(chains)
    _look_into_packs(study, chains, wanted)
    identity = _identity([each.identity for each in wanted], [each.key for each in wanted])
    if not _is_whole(storage, identity):
        _write_changes(storage, wanted, chains, identity)
    _bring_rates_up_to_date(storage, ledger, chains, wanted)
    return _summed(storage, chains, wanted)


def build_account_history(study: Study) -> AccountHistory:
    """Bring the history of accounts up to date; raises StorageError."""
    storage = StudyStorage(study.location)
    rows = history.account_history(read_ledger(storage), directory_answers(storage))
    identity = digest_of(rows)
    if not is_made_of(storage, ACCOUNT_HISTORY_KEY, identity):
        store(storage, ACCOUNT_HISTORY_KEY, rows, identity)
    return AccountHistory(rows, history.misfits(rows))


def _look_into_packs(study: Study, chains: pl.DataFrame, wanted: Sequence[Comparison]) -> None:
    """Take the inventories, and make the comparisons, that are not stored; and remove those of other packs."""
    storage = StudyStorage(study.location)
    packs = chains.select("pds_host", "pack").unique().sort("pds_host", "pack").rows()
    own = {inventory_key(*pack) for pack in packs} | {each.key for each in wanted}
    discard(storage, [key for key in storage.keys(FOLDER) if key not in own])
    uncompared = [each for each in wanted if not is_compared(storage, each)]
    tasks: list[tuple[Callable[..., None], tuple[object, ...]]] = [
        *((take_inventory, pack) for pack in packs if not has_inventory(storage, *pack)),
        *((compare, (each,)) for each in uncompared),
    ]
    if not tasks:
        return
    if sum(storage.sizes("repos").values()) < _SMALL_BYTES:
        for work, arguments in tasks:
            work(study.location, *arguments)
        return
    with worker_pool(study.processing.worker_count) as workers:
        for future in as_completed(
            [workers.submit(work, study.location, *arguments) for work, arguments in tasks]
        ):
            future.result()


def _identity(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()[:24]


def _is_whole(storage: StudyStorage, identity: str) -> bool:
    """Tell whether the table's files are all there, and made of just this."""
    keys = storage.keys(RECORD_CHANGES_FOLDER)
    return bool(keys) and all(is_made_of(storage, key, f"{identity} {len(keys)}") for key in keys)


def _write_changes(
    storage: StudyStorage, stored: Sequence[Comparison], chains: pl.DataFrame, identity: str
) -> None:
    events = sum(_rows_of(storage, each.key) for each in stored)
    ranges = did_ranges(events, _CHANGES_AT_ONCE)
    discard(storage, storage.keys(RECORD_CHANGES_FOLDER)[len(ranges) :])
    for number, some in enumerate(ranges):
        found = list(changes.read_events(storage, stored, chains, some))
        rows = changes.record_changes(pl.concat(found)) if found else changes.RECORD_CHANGES_SCHEMA.to_frame()
        store(
            storage,
            f"{RECORD_CHANGES_FOLDER}/part-{number:05d}.parquet",
            rows,
            f"{identity} {len(ranges)}",
        )


def _rows_of(storage: StudyStorage, key: str) -> int:
    [counted] = storage.collect([storage.scan([key], {"did": pl.String()}).select(pl.len())], [key])
    return int(counted.item())


def _bring_rates_up_to_date(
    storage: StudyStorage, ledger: pl.DataFrame, chains: pl.DataFrame, wanted: Sequence[Comparison]
) -> None:
    states = history.state_times(ledger, directory_answers(storage))
    spans = chains.select("did", "fetched_at", "confirmed_at", "confirmations", "next_at")
    told = [digest_of(spans), digest_of(states)]
    identity = _identity(told, [each.identity for each in wanted])
    if is_made_of(storage, DELETION_RATES_KEY, identity):
        return
    rates = RATES_SCHEMA.to_frame()
    watched_at_all = spans.filter(pl.coalesce("next_at", "confirmed_at") > pl.col("fetched_at"))
    if watched_at_all.height:
        accounts = chains.select("did").unique(maintain_order=True).with_row_index("account")
        records = watched(
            _inventories(storage, chains), changes.read_events(storage, wanted, chains), accounts
        )
        rates = pl.concat([deletion_rates(records), account_rates(states, sorted(INACTIVE_STATES))])
    store(storage, DELETION_RATES_KEY, rates, identity)


def _inventories(storage: StudyStorage, chains: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield what the snapshots that were watched hold, with how long; some packs at a time."""
    spans = chains.filter(pl.coalesce("next_at", "confirmed_at") > pl.col("fetched_at")).sort(
        "pds_host", "pack", maintain_order=True
    )
    packs = spans.group_by("pds_host", "pack", maintain_order=True).agg(snapshots=pl.len())
    begun = 0
    for some in packs.iter_slices(_PACKS_AT_ONCE):
        own = spans.slice(begun, int(some["snapshots"].sum()))
        begun += own.height
        keys = {inventory_key(host, pack): f"{host}\n{pack}" for host, pack, _ in some.iter_rows()}
        rows = storage.scan_named(keys, INVENTORY_SCHEMA, "of")
        [found] = storage.collect([rows], keys)
        times = own.select(
            "did",
            "fetched_at",
            "confirmed_at",
            "confirmations",
            "next_at",
            of=pl.concat_str("pds_host", pl.lit("\n"), "pack"),
        )
        yield found.join(times, on=["did", "of"]).drop("of")


def _summed(storage: StudyStorage, chains: pl.DataFrame, wanted: Sequence[Comparison]) -> RecordChanges:
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
        compared=chains["before_pack"].count(),
        by_ending=pl.concat(endings).group_by(kinds).agg(pl.col("records").sum()).sort(kinds),
        unaccounted=sum(int(told_of(storage, each.key).get(UNACCOUNTED, 0)) for each in wanted),
        **totals,
    )
