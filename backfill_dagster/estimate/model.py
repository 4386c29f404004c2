"""From accounts, hosts and settings to what a study takes. Pure arithmetic: nothing is read or asked here."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill_dagster.config.network import Network
    from backfill_dagster.config.processing import Processing
    from backfill_dagster.estimate.figures import Figures, Prices

_HOUR = 3600.0
_GIGABYTE = 1e9
# Operations on one page of the PLC directory's export; that of all its operations, of which it had so many in 2026.
_EXPORT_PAGE = 1000
_EXPORT_OPERATIONS = 80_000_000
# Objects written for a pack with its conversion, and read again by the stages after it.
_PUTS_PER_PACK, _GETS_PER_PACK = 12, 40


@dataclass(frozen=True, slots=True)
class Frame:
    """What is to be collected: accounts of each host, largest first, and the mean size of a repository."""

    hosts: Sequence[int]
    records_per_account: float
    bytes_per_account: float

    @property
    def accounts(self) -> int:
        """Accounts of all hosts together."""
        return sum(self.hosts)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a study takes: requests, bytes, seconds, and dollars at AWS.

    `hosts_seconds` is what all hosts take at their pace; `fetch_seconds` what the machine makes of it.
    """

    accounts: int
    hosts: int
    records: float
    directory_requests: float
    fetch_requests: float
    bytes_received: float
    directory_seconds: float
    slowest_host_seconds: float
    hosts_seconds: float
    fetch_seconds: float
    tables_seconds: float
    cpu_seconds: float
    bytes_stored: float
    peak_memory: float
    machine_dollars: float
    storage_dollars_a_month: float
    storage_request_dollars: float

    @property
    def seconds(self) -> float:
        """From the first request to the last table."""
        return self.directory_seconds + self.fetch_seconds + self.tables_seconds


def estimate(
    frame: Frame, processing: Processing, network: Network, figures: Figures, prices: Prices
) -> Estimate:
    """Say what a study of this frame takes with these settings, if nothing fails."""
    workers, accounts = processing.worker_count, frame.accounts
    records, received = accounts * frame.records_per_account, accounts * frame.bytes_per_account
    directory_requests = _directory_requests(accounts, network)
    # In bulk, accounts are not looked up one by one.
    looking_up = accounts * figures.look_up_per_account if directory_requests == accounts else 0.0
    by_host = [_host_seconds(count, frame.bytes_per_account, processing, figures) for count in frame.hosts]
    asking = accounts * figures.fetch_per_account + received * figures.fetch_per_byte
    proving = accounts * figures.verify_and_pack_per_account + records * figures.verify_and_pack_per_record
    typing_ = accounts * (figures.convert_per_account + figures.table_per_account) + records * (
        figures.convert_per_record + figures.table_per_record + figures.inventory_per_record
    )
    own = (
        figures.start_up
        + len(frame.hosts) * figures.own_per_host
        + accounts * figures.finish_per_account
        + records * figures.finish_per_record
    )
    hosts_seconds = _side_by_side(by_host, processing.max_concurrent_pds)
    fetch_seconds = max(
        hosts_seconds,
        received / figures.line_bytes_per_second,
        asking,
        proving / workers,
    )
    directory_seconds = max(directory_requests / network.plc_requests_per_second, looking_up)
    tables_seconds = typing_ / workers + own
    total_seconds = directory_seconds + fetch_seconds + tables_seconds
    stored = received * (figures.packs_per_byte + figures.records_per_byte + figures.tables_per_byte)
    packs = sum(_packs(count, frame.bytes_per_account, processing) for count in frame.hosts)
    return Estimate(
        accounts=accounts,
        hosts=len(frame.hosts),
        records=records,
        directory_requests=directory_requests,
        fetch_requests=accounts,
        bytes_received=received,
        directory_seconds=directory_seconds,
        slowest_host_seconds=max(by_host, default=0.0),
        hosts_seconds=hosts_seconds,
        fetch_seconds=fetch_seconds,
        tables_seconds=tables_seconds,
        cpu_seconds=looking_up + asking + proving + typing_ + own,
        bytes_stored=stored,
        peak_memory=figures.parent_memory
        + accounts * figures.parent_memory_per_account
        + workers * figures.worker_memory,
        machine_dollars=total_seconds / _HOUR * prices.machine_hour * max(1.0, workers / 2),
        storage_dollars_a_month=stored / _GIGABYTE * prices.gigabyte_month,
        storage_request_dollars=packs
        / 1000
        * (_PUTS_PER_PACK * prices.put_of_thousand + _GETS_PER_PACK * prices.get_of_thousand),
    )


def _directory_requests(accounts: int, network: Network) -> float:
    export = network.plc_export
    in_bulk = export.use == "always" or (export.use == "auto" and accounts >= export.at_least)
    return _EXPORT_OPERATIONS / _EXPORT_PAGE if in_bulk and accounts else accounts


def _host_seconds(accounts: int, bytes_per_account: float, processing: Processing, figures: Figures) -> float:
    """Return how long one host takes: by its rate, by answers under way at once, or by its line."""
    answer = figures.request_seconds + bytes_per_account / figures.host_bytes_per_second
    return max(
        accounts / processing.requests_per_second,
        accounts * answer / processing.requests_in_flight,
        accounts * bytes_per_account / figures.host_bytes_per_second,
    )


def _side_by_side(seconds: Sequence[float], at_once: int) -> float:
    """Return how long all hosts take, so many at once, the longest first."""
    busy_until = [0.0] * min(at_once, max(1, len(seconds)))
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(busy_until, busy_until[0] + each)
    return max(busy_until)


def _packs(accounts: int, bytes_per_account: float, processing: Processing) -> float:
    by_bytes = accounts * bytes_per_account / (processing.pack_megabytes * 2**20)
    return max(1.0, accounts / processing.batch_size, by_bytes)
