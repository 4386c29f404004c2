"""The connections of one stage: the hosts' turns and a resolver, to the real network or a sandbox."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from backfill_dagster.directory.handles import HandleResolver
from backfill_dagster.directory.resolver import PLC_IN_FLIGHT, Resolver
from backfill_dagster.errors import first_known
from backfill_dagster.interrupts import run_interruptible
from backfill_dagster.monitoring.study_metrics import unmeasured
from backfill_dagster.network.addresses import host_of
from backfill_dagster.network.asking import PoliteHost
from backfill_dagster.network.dns import TxtLookup
from backfill_dagster.network.http import HttpClient
from backfill_dagster.network.leases import LocalHostLeases
from backfill_dagster.network.limits import HostGates
from backfill_dagster.network.patience import Patience, RunTime
from backfill_dagster.network.turns import Turns
from backfill_dagster.stores.location import S3Folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from backfill_dagster.config.network import Network
    from backfill_dagster.config.processing import Processing
    from backfill_dagster.config.study import Study
    from backfill_dagster.monitoring.study_metrics import StudyMetrics
    from backfill_dagster.network.leases import HostLeases
    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.stores.location import Location

# Requests that a host gets at once after a rest; small against any server's window.
BURST = 10
# Objects made, less those that are gone, after which Python looks for cycles among them; its own choice is 700.
_COLLECT_AFTER = 20_000
# Below the storage's path, beside the studies that share it; no study has a name like this.
_LEASES = ".leases"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Connections:
    """What a stage needs to talk to servers; of use on the event loop on which it was opened.

    `network` and `processing` are the settings that hold in this run, and `shared_folder` is the one below which the
    studies that share a storage keep what is no study's own.
    """

    turns: Turns
    gates: HostGates
    leases: HostLeases
    resolver: Resolver
    handles: HandleResolver
    run_time: RunTime
    network: Network
    processing: Processing
    shared_folder: Location

    def host(self, origin: str) -> PoliteHost:
        """Return how the server of this origin is asked, at the pace that every host is."""
        return self._polite(self.gates.gate(host_of(origin)))

    def directory_host(self, origin: str) -> PoliteHost:
        """Return how a PLC directory, or a mirror of it, is asked."""
        rate = self.network.plc_requests_per_second
        return self._polite(self.gates.gate(host_of(origin), rate=rate, in_flight=PLC_IN_FLIGHT))

    def _polite(self, gate: HostGate) -> PoliteHost:
        return PoliteHost(
            self.turns,
            gate,
            self.leases,
            Patience(self.network.max_park_minutes * 60, self.run_time),
            max_retries=self.processing.max_retries,
            retry_base_seconds=self.network.retry_base_seconds,
        )


def host_gates(processing: Processing) -> HostGates:
    """Return a registry of host limits with the pace that the processing settings give each host."""
    return HostGates(
        rate=processing.requests_per_second, burst=BURST, in_flight=processing.requests_in_flight
    )


def host_leases(folder: Location, holder: str) -> HostLeases:
    """Return the leases that are kept in a folder, whoever shares it."""
    if isinstance(folder, S3Folder):
        # boto3 takes longer to import than all else here, and most studies are stored on a disk.
        from backfill_dagster.network.s3_leases import S3HostLeases

        return S3HostLeases(folder, holder)
    return LocalHostLeases(folder, holder)


@asynccontextmanager
async def open_connections(
    study: Study, gates: HostGates | None, processing: Processing, metrics: StudyMetrics | None = None
) -> AsyncIterator[Connections]:
    """Open the study's connections; `gates` if the process has limits to share, else limits of its own."""
    network = _reachable(study.network)
    gates = gates or host_gates(processing)
    metrics = metrics or unmeasured()
    metrics.always_name(host_of(network.plc_url))
    metrics.watch_gates(gates)
    leases = host_leases(study.storage.location / _LEASES, f"study {study.name}")
    minutes = processing.max_run_minutes
    run_time = RunTime(None if minutes is None else minutes * 60)
    with rare_collections():
        async with HttpClient.from_settings(network) as http:
            turns = Turns(
                http,
                gates,
                leases,
                rate=processing.requests_per_second,
                in_flight=processing.requests_in_flight,
                metrics=metrics,
            )
            resolver = Resolver(turns, gates, network, processing, leases=leases, run_time=run_time)
            handles = HandleResolver(
                resolver,
                gates,
                http.policy,
                processing,
                txt=_txt_lookup(network),
                in_sandbox=network.sandbox is not None,
            )
            yield Connections(
                turns, gates, leases, resolver, handles, run_time, network, processing, study.storage.location
            )


def _txt_lookup(network: Network) -> TxtLookup | None:
    if network.sandbox is not None and network.dns_server is None:
        return None  # Nobody outside knows the names of a sandbox.
    return TxtLookup(network.dns_server, network.connect_timeout_seconds)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for cycles of garbage less often: hundreds of requests under way would be walked again each time."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _COLLECT_AFTER), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _reachable(network: Network) -> Network:
    """Point the network section at this process's sandbox, if the study runs in one."""
    if network.sandbox is None:
        return network
    from backfill_dagster.sandbox.network import process_sandbox

    sandbox = process_sandbox(network.sandbox)
    return network.model_copy(
        update={
            "plc_url": sandbox.plc_url,
            "connect_to": {**sandbox.handle_addresses, **sandbox.connect_to, **network.connect_to},
        }
    )


def with_connections(
    study: Study,
    gates: HostGates | None,
    work: Callable[[Connections], Coroutine[None, None, _Result]],
    processing: Processing | None = None,
    metrics: StudyMetrics | None = None,
) -> _Result:
    """Do work on an event loop of its own, with connections that are closed after it; return what it returns."""

    async def run() -> _Result:
        async with open_connections(study, gates, processing or study.processing, metrics) as connections:
            return await work(connections)

    try:
        return run_interruptible(run())
    except BaseExceptionGroup as group:
        # Of tasks that failed together, for one reason as a rule.
        known = first_known(group)
        if known is None:
            raise
        raise known from group
