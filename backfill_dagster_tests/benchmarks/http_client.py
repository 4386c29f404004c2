"""What a request costs this process: the crawl's own download against plain httpx and plain aiohttp.

    python -m backfill_dagster_tests.benchmarks --only http_client

The server is another process on loopback that sends what lies ready. Every client writes each body to a file of its
own, as the crawl does, over connections that are open already. Host limits are set so high that nothing waits.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import aiohttp
import httpx

from backfill_dagster.config.network import Network
from backfill_dagster.connections import rare_collections
from backfill_dagster.network.http import HttpClient
from backfill_dagster.network.limits import HostGates
from backfill_dagster.network.patience import Patience
from backfill_dagster.network.turns import Turns
from backfill_dagster.repos.client import DownloadBounds, get_repo
from backfill_dagster.repos.outcomes import Outcome
from backfill_dagster_tests.benchmarks.measure import Goal, Measured, Options, Report, Subject, interleave
from backfill_dagster_tests.benchmarks.prepared_server import prepared_server

PATH = "/xrpc/com.atproto.sync.getRepo"
SMALL, SMALL_BYTES, SMALL_REQUESTS = "small", 20_000, 1000
LARGE_REQUESTS = 24
IN_FLIGHT = 50
POOLS = (10, 50, 100, 500)

MOST_PER_REQUEST_MS = 0.7
MOST_PER_MEGABYTE_MS = 2.2
MOST_GROWTH = 1.2

# As many at once as a host gets in a crawl: more in flight are more hosts.
PER_HOST = 4
HOSTS = [f"pds{number}.test" for number in range(max(POOLS) // PER_HOST)]

_NEVER_WAITS = 1e9
_BOUNDS = DownloadBounds(max_bytes=2**30, seconds=3600)

Ask: TypeAlias = Callable[[int, str, Path], Awaitable[int]]
"""Downloads, from a host by its number, an account's repository into a file; returns how many bytes that has."""
Open: TypeAlias = Callable[[str], AbstractAsyncContextManager[Ask]]
"""Opens a client to the server at `127.0.0.1:PORT`."""


def run(options: Options) -> list[Report]:
    """Measure small requests, large bodies, and small requests by how many are in flight."""
    lengths = random.Random(1)
    large = {f"large{number}": lengths.randint(10**6, 5 * 10**6) for number in range(LARGE_REQUESTS)}
    sizes = {SMALL: SMALL_BYTES, **large}
    bodies = {f"{PATH}?did={did}": lengths.randbytes(size) for did, size in sizes.items()}
    with prepared_server(bodies) as server, asyncio.Runner() as loop:
        folder = options.folder / "http_client"
        bench = _Bench(loop, server.address, sizes, folder, options.rounds)
        return [_small_requests(bench), _large_bodies(bench, large), _growth(bench)]


def _small_requests(bench: _Bench) -> Report:
    asked = [SMALL] * SMALL_REQUESTS
    clients = [(name, client, IN_FLIGHT) for name, client in CLIENTS.items()]
    measured = bench.compare([*clients, ("files alone, asking nobody", _files_alone, 1)], asked)
    return Report(
        f"HTTP client, {SMALL_BYTES / 1000:.0f} kB a request, {IN_FLIGHT} in flight",
        _COLUMNS,
        _rows(measured, SMALL_REQUESTS),
        [_at_most("client CPU, ms per small request", MOST_PER_REQUEST_MS, measured[0], SMALL_REQUESTS)],
    )


def _large_bodies(bench: _Bench, lengths: dict[str, int]) -> Report:
    megabytes = sum(lengths.values()) / 1e6
    clients = [(name, client, LARGE_REQUESTS) for name, client in CLIENTS.items()]
    measured = bench.compare(clients, list(lengths))
    return Report(
        f"HTTP client, bodies of 1 to 5 MB, {LARGE_REQUESTS} in flight",
        (_COLUMNS[0], "ms/MB median", "ms/MB min"),
        _rows(measured, megabytes),
        [_at_most("client CPU, ms per MB", MOST_PER_MEGABYTE_MS, measured[0], megabytes)],
    )


def _growth(bench: _Bench) -> Report:
    asked = [SMALL] * SMALL_REQUESTS
    # Plain httpx would take half a minute for a round at 500.
    clients = [
        (f"{name}, {pool} in flight", CLIENTS[name], pool)
        for name, pools in ((OURS, POOLS), (HTTPX, POOLS[:2]))
        for pool in pools
    ]
    measured = bench.compare(clients, asked)
    fewest, most = measured[0], measured[len(POOLS) - 1]
    growth = most.median / fewest.median
    return Report(
        "HTTP client, small requests by the number in flight",
        _COLUMNS,
        _rows(measured, SMALL_REQUESTS),
        [
            Goal(
                f"growth from {POOLS[0]} to {POOLS[-1]} in flight",
                MOST_GROWTH,
                at_least=False,
                measured=growth,
            )
        ],
    )


_COLUMNS = ("client CPU", "ms/request median", "ms/request min")


def _rows(measured: list[Measured], units: float) -> list[list[str | int | float | None]]:
    return [[one.name, 1000 * one.median / units, 1000 * one.minimum / units] for one in measured]


def _at_most(what: str, limit: float, measured: Measured, units: float) -> Goal:
    return Goal(what, limit, at_least=False, measured=1000 * measured.median / units)


@dataclass(frozen=True, slots=True)
class _Bench:
    """One event loop for all rounds, so that a client's connections stay open from one to the next."""

    loop: asyncio.Runner
    address: str
    sizes: Mapping[str, int]
    folder: Path
    rounds: int

    def compare(self, clients: Sequence[tuple[str, Open, int]], dids: Sequence[str]) -> list[Measured]:
        """Time how each client, with so many requests in flight, downloads all of these."""
        self.folder.mkdir(parents=True)
        stack = AsyncExitStack()
        try:
            subjects = []
            for name, client, in_flight in clients:
                ask = self.loop.run(stack.enter_async_context(client(self.address)))
                ask_all = partial(self._ask_all, ask, in_flight, dids)
                subjects.append(Subject(name, _as_in_a_crawl(ask_all) if client in _OURS else ask_all))
            return interleave(subjects, self.rounds)
        finally:
            self.loop.run(stack.aclose())
            shutil.rmtree(self.folder)

    def _ask_all(self, ask: Ask, in_flight: int, dids: Sequence[str]) -> None:
        # A fresh folder: to delete the files of the round before is the workers' business in a crawl.
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        waiting = list(enumerate(dids))
        lengths: list[int] = []

        async def ask_until_empty(host: int) -> None:
            while waiting:
                number, did = waiting.pop()
                lengths.append(await ask(host, did, folder / f"{number}.car"))

        async def ask_all() -> None:
            async with asyncio.TaskGroup() as tasks:
                for place in range(in_flight):
                    tasks.create_task(ask_until_empty(place // PER_HOST))

        self.loop.run(ask_all())
        if sorted(lengths) != sorted(self.sizes[did] for did in dids):
            raise RuntimeError("the bodies are not those that were sent")


def _as_in_a_crawl(run: Callable[[], object]) -> Callable[[], object]:
    """Return the same with the collector as the crawl sets it; the others have it as Python does."""

    def calm() -> object:
        with rare_collections():
            return run()

    return calm


# --- the clients ---


@asynccontextmanager
async def _get_repo(address: str) -> AsyncIterator[Ask]:
    """All that the crawl does for a repository, from the host's turn to the file."""
    async with _http_client(address) as http:
        gates = HostGates(rate=_NEVER_WAITS, burst=_NEVER_WAITS, in_flight=PER_HOST)
        turns = Turns(http, gates, None, rate=_NEVER_WAITS, in_flight=PER_HOST)
        patience = Patience()

        async def ask(host: int, did: str, to: Path) -> int:
            name = HOSTS[host]
            answer = await get_repo(turns, gates.gate(name), f"http://{name}", did, to, _BOUNDS, patience)
            if answer.outcome is not Outcome.COMPLETE:
                raise RuntimeError(f"{did}: {answer}")
            return answer.bytes_received

        yield ask


@asynccontextmanager
async def _download(address: str) -> AsyncIterator[Ask]:
    """The client by itself, without turns and limits."""
    async with _http_client(address) as http:

        async def ask(host: int, did: str, to: Path) -> int:
            answer = await http.download(
                f"http://{HOSTS[host]}{PATH}",
                params={"did": did},
                to=to,
                max_bytes=_BOUNDS.max_bytes,
                total_timeout=_BOUNDS.seconds,
            )
            return answer.bytes_written

        yield ask


@asynccontextmanager
async def _httpx(address: str) -> AsyncIterator[Ask]:
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=60) as client:

        async def ask(host: int, did: str, to: Path) -> int:
            received = 0
            async with client.stream("GET", f"http://{address}{PATH}", params={"did": did}) as response:
                with to.open("wb") as file:
                    async for chunk in response.aiter_raw():
                        received += file.write(chunk)
            return received

        yield ask


@asynccontextmanager
async def _aiohttp(address: str) -> AsyncIterator[Ask]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def ask(host: int, did: str, to: Path) -> int:
            received = 0
            async with session.get(f"http://{address}{PATH}", params={"did": did}) as response:
                with to.open("wb") as file:
                    async for chunk in response.content.iter_any():
                        received += file.write(chunk)
            return received

        yield ask


@asynccontextmanager
async def _files_alone(address: str) -> AsyncIterator[Ask]:
    """What every client does after all: bytes that are there, into new files."""
    body = bytes(SMALL_BYTES)

    async def ask(host: int, did: str, to: Path) -> int:
        with to.open("wb") as file:
            return file.write(body)

    yield ask


def _http_client(address: str) -> HttpClient:
    return HttpClient.from_settings(Network(connect_to={f"{host}:80": address for host in HOSTS}))


OURS, HTTPX = "get_repo, as the crawl calls it", "httpx"
CLIENTS: dict[str, Open] = {
    OURS: _get_repo,
    "HttpClient.download alone": _download,
    HTTPX: _httpx,
    "aiohttp": _aiohttp,
}
_OURS = (_get_repo, _download)
