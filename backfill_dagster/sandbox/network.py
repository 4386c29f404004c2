"""The sandbox as a whole: its servers in one background thread, and one per process and settings."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from typing import TYPE_CHECKING, Any, Self

from backfill_dagster.sandbox.accounts import Accounts
from backfill_dagster.sandbox.doors import Door
from backfill_dagster.sandbox.editing import Editor
from backfill_dagster.sandbox.exports import Exports
from backfill_dagster.sandbox.faults import Faults
from backfill_dagster.sandbox.population import PLC_HOST, RELAY_HOST, Population
from backfill_dagster.sandbox.repo import Repos
from backfill_dagster.sandbox.request_log import RequestLog
from backfill_dagster.sandbox.servers import (
    PersonalDataServer,
    PlcDirectory,
    RateLimit,
    Relay,
    Site,
    WebHost,
)
from backfill_dagster.sandbox.truth import Truth

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

    from backfill_dagster.config.network import SandboxSettings

_PATIENCE_SECONDS = 10


class SandboxNetwork:
    """A PLC directory, PDSs and a relay on loopback, from `start` to `stop`; may be started again, on other ports.

    `requests` logs what was asked. At any time `faults` may be switched, and accounts changed with `edit`;
    `truth` says what must be found.
    """

    def __init__(
        self, settings: SandboxSettings, *, faults: Faults | None = None, rate_limit: RateLimit | None = None
    ) -> None:
        self.settings = settings
        self.population = Population(settings)
        self.faults = faults or Faults()
        self.requests = RequestLog()
        self._accounts = Accounts(self.population)
        self._repos = Repos(self.population)
        self.edit = Editor(self._accounts, self._repos)
        self.truth = Truth(self._accounts, self._repos)
        self._rate_limit = rate_limit or RateLimit()
        self._servers: _Servers | None = None
        self.faults.listen(self._follow_fault)

    @property
    def plc_url(self) -> str:
        """The URL of the PLC directory."""
        return f"http://{PLC_HOST}"

    @property
    def relay_url(self) -> str:
        """The URL of the relay."""
        return f"http://{RELAY_HOST}"

    @property
    def dids(self) -> list[str]:
        """All accounts, in a stable order."""
        return [account.did for account in self.population.accounts]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of the PDSs."""
        return self.population.hosts

    @property
    def connect_to(self) -> dict[str, str]:
        """Where each host is: `name:80` to `127.0.0.1:PORT`. Raises RuntimeError while nothing runs."""
        if self._servers is None:
            raise RuntimeError("the sandbox does not run: call start() first")
        return dict(self._servers.addresses)

    @property
    def handle_addresses(self) -> dict[str, str]:
        """Where the host of each handle is, which is the account's PDS; as `connect_to` has it."""
        addresses = self.connect_to
        return {
            f"{state.identity.handle}:80": addresses[f"{state.host}:80"] for state in self._accounts.all()
        }

    def start(self) -> Self:
        """Open all ports but those of hosts that are down; returns when they answer."""
        if self._servers is None:
            exports = Exports(self._repos)
            self._servers = _Servers(self._sites(exports), exports, self.faults, self.requests)
        return self

    def stop(self) -> None:
        """Close all ports and end the thread, whatever is under way."""
        servers, self._servers = self._servers, None
        if servers is not None:
            servers.stop()

    def forget_thread(self) -> None:
        """Let go, in a forked process, of ports whose thread lives on in the parent alone."""
        servers, self._servers = self._servers, None
        if servers is not None:
            servers.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _sites(self, exports: Exports) -> dict[str, Site]:
        accounts, faults = self._accounts, self.faults
        sites: dict[str, Site] = {
            PLC_HOST: PlcDirectory(accounts, faults),
            RELAY_HOST: Relay(accounts, exports),
        }
        for host in self.population.hosts:
            sites[host] = PersonalDataServer(host, accounts, exports, faults, self._rate_limit)
        for account in self.population.accounts:
            if account.is_web:
                sites[account.did.removeprefix("did:web:")] = WebHost(account.did, accounts, faults)
        return sites

    def _follow_fault(self, host: str) -> None:
        if self._servers is not None:
            self._servers.set_open(host, is_open=not self.faults.is_down(host))


class _Servers:
    """Ports, and the thread with the event loop that serves them."""

    def __init__(self, sites: dict[str, Site], exports: Exports, faults: Faults, log: RequestLog) -> None:
        self._exports = exports
        self._doors = {host: Door(host, sites, faults, log) for host in sites}
        self.addresses = {f"{host}:80": door.address for host, door in self._doors.items()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox", daemon=True)
        self._thread.start()
        self._run(self._open([door for host, door in self._doors.items() if not faults.is_down(host)]))

    def set_open(self, host: str, *, is_open: bool) -> None:
        """Open or close a host's port; returns when it is done. Raises KeyError for an unknown host."""
        door = self._doors[host]
        self._run(door.open() if is_open else door.shut())

    def stop(self) -> None:
        """Close everything and end the thread."""
        self._exports.close()
        self._run(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_SECONDS)
        self._loop.close()
        self.release()

    def release(self) -> None:
        """Close this process's hold on the ports."""
        for door in self._doors.values():
            door.release()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_SECONDS)

    async def _open(self, doors: list[Door]) -> None:
        for door in doors:
            await door.open()

    async def _shut(self) -> None:
        await asyncio.gather(*(door.shut() for door in self._doors.values()))
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


_lock = threading.Lock()
_networks: dict[SandboxSettings, SandboxNetwork] = {}


def process_sandbox(settings: SandboxSettings) -> SandboxNetwork:
    """Return this process's running sandbox of these settings; the first call starts it, the exit stops it.

    Safe to call from any thread. A forked process starts one of its own.
    """
    with _lock:
        network = _networks.get(settings)
        if network is None:
            network = SandboxNetwork(settings).start()
            _networks[settings] = network
        return network


def _stop_all() -> None:
    with _lock:
        for network in _networks.values():
            network.stop()
        _networks.clear()


def _after_fork() -> None:
    # Another thread may have held the lock at the moment of the fork, and will never let go of it here.
    global _lock
    _lock = threading.Lock()
    for network in _networks.values():
        network.forget_thread()
    _networks.clear()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork)
