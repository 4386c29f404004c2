"""Every request in the turn of the host that it goes to: redirects, pauses, leases, and the end of patience."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from backfill_dagster.network.addresses import Lookup
from backfill_dagster.network.http import Answer, RequestFailedError, RequestFault
from backfill_dagster.network.leases import HostLeases, LocalHostLeases
from backfill_dagster.network.limits import HostGate, HostGates, HostParkedError
from backfill_dagster.network.patience import Patience, RunOverError, RunTime
from backfill_dagster.network.turns import MAX_OTHER_HOSTS, MAX_REDIRECTS, Turns
from backfill_dagster_tests.network.loopback import Handler, loopback_client, serve

A, B = "http://a.test/", "http://b.test/"
MAX = 1000


def says(status: int = 200, body: bytes = b"", **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    return handler


def to(location: str, status: int = 302) -> Handler:
    return says(status, Location=location)


def in_turn(*handlers: Handler) -> Handler:
    left = list(handlers)

    async def handler(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return handler


@dataclass
class Hosts:
    """Hosts behind one port, by name; counts what each was asked, and how much at once."""

    handlers: Mapping[str, Handler]
    turns: Turns = field(init=False)
    gates: HostGates = field(init=False)
    asked: Counter[str] = field(default_factory=Counter)
    urls: list[str] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.host] += 1
        self.urls.append(str(request.url))
        return await self.handlers[request.host](request)

    def gate(self, host: str = "a.test") -> HostGate:
        return self.gates.gate(host)

    async def get(self, url: str = A, host: str = "a.test", patience: Patience | None = None) -> Answer:
        return await self.turns.get(self.gate(host), url, max_bytes=MAX, patience=patience or Patience())


@asynccontextmanager
async def hosts(
    handlers: Mapping[str, Handler],
    *,
    in_flight: int = 1,
    leases: HostLeases | None = None,
    read_timeout: float = 2,
    allow_private: bool = True,
    mapped: bool = True,
    lookup: Lookup | None = None,
) -> AsyncIterator[Hosts]:
    found = Hosts(handlers)
    async with serve(found) as address:
        connect_to = {f"{host}:80": address for host in handlers} if mapped else {"a.test:80": address}
        client = loopback_client(
            connect_to=connect_to, read_timeout=read_timeout, allow_private=allow_private, lookup=lookup
        )
        async with client as http:
            found.gates = HostGates(rate=1000, burst=1000, in_flight=in_flight)
            found.turns = Turns(http, found.gates, leases, rate=500, in_flight=in_flight)
            yield found


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def fault_of(asking: Coroutine[Any, Any, Any]) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as caught:
        await asking
    return caught.value


# --- redirects ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_in_the_turn_of_the_host_that_it_leads_to(status: int, tmp_path: Path) -> None:
    async def work() -> None:
        handlers = {
            "a.test": in_turn(to("/next?x=1", status), to(B + "there", status)),
            "b.test": says(200, b"here"),
        }
        async with hosts(handlers) as found:
            answer = await found.turns.get(found.gate(), A, params={"did": "x"}, max_bytes=MAX)
            assert (answer.body, answer.url) == (b"here", B + "there")
            assert found.urls == [A + "?did=x", A + "next?x=1", B + "there"]
            assert (found.gate("a.test").requests, found.gate("b.test").requests) == (2, 1)

            target = tmp_path / "body"
            download = await found.turns.download(found.gate(), A, to=target, max_bytes=MAX, total_timeout=2)
            assert (download.status, target.read_bytes()) == (200, b"here")
            assert found.gate("b.test").requests == 2

    run(work())


def test_five_redirects_are_the_most_over_all_hosts() -> None:
    async def work() -> None:
        handlers = {"a.test": to(B), "b.test": to(A)}
        async with hosts(handlers) as found:
            error = await fault_of(found.get())
            assert error.kind is RequestFault.BAD_REDIRECT
            assert str(MAX_REDIRECTS) in error.detail
            assert found.asked.total() == MAX_REDIRECTS + 1

    run(work())


def test_hosts_that_lead_to_each_other_make_nobody_wait_in_a_circle() -> None:
    """Each has one place, and all requests hold one and want the other at the same time."""

    async def work() -> None:
        async def slow(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(0.01)
            return web.Response(status=302, headers={"Location": B if request.host == "a.test" else A})

        async with hosts({"a.test": slow, "b.test": slow}) as found:
            asking = [
                fault_of(found.get(url, host))
                for url, host in ((A, "a.test"), (B, "b.test"))
                for _ in range(4)
            ]
            errors = await asyncio.gather(*asking)
            assert {error.kind for error in errors} == {RequestFault.BAD_REDIRECT}

    run(work())


def test_the_place_at_the_first_host_is_free_while_the_other_is_waited_for() -> None:
    async def work() -> None:
        reached = asyncio.Event()

        async def first(request: web.Request) -> web.StreamResponse:
            reached.set()
            return await to(B)(request)

        handlers = {"a.test": in_turn(first, says(200, b"a")), "b.test": says(200, b"b")}
        async with hosts(handlers) as found, found.gate("b.test").request():
            led = asyncio.create_task(found.get())
            await reached.wait()
            assert (await found.get()).body == b"a"
            assert not led.done()
            assert found.asked["b.test"] == 0
            led.cancel()

    run(work())


def test_a_429_parks_the_host_that_gave_it_and_is_asked_for_again_there() -> None:
    async def work() -> None:
        handlers = {
            "a.test": to(B),
            "b.test": in_turn(says(429, Retry_After="1"), says(200, b"b")),
        }
        async with hosts(handlers) as found:
            begun = time.monotonic()
            assert (await found.get()).body == b"b"
            assert time.monotonic() - begun > 0.9
            assert found.asked == {"a.test": 1, "b.test": 2}
            assert (found.gate("a.test").parks, found.gate("b.test").parks) == (0, 1)

    run(work())


def test_what_a_redirect_says_of_limits_is_heeded() -> None:
    async def work() -> None:
        reset = str(int(time.time()) + 100)
        handlers = {
            "a.test": says(302, Location=B, RateLimit_Remaining="0", RateLimit_Reset=reset),
            "b.test": says(200),
        }
        async with hosts(handlers) as found:
            assert (await found.get()).status == 200
            assert found.gate("a.test").parked_for() > 90
            assert found.gate("b.test").parked_for() == 0

    run(work())


def test_another_host_that_is_parked_for_too_long_ends_the_request() -> None:
    async def work() -> None:
        async with hosts({"a.test": to(B), "b.test": says(200)}) as found:
            found.gate("b.test").observe(429, {"retry-after": "600"})
            with pytest.raises(HostParkedError) as caught:
                await found.get(patience=Patience(max_park=300))
            assert caught.value.host == "b.test"
            assert found.asked == {"a.test": 1}

    run(work())


def test_a_redirect_slows_no_host_down_that_is_known() -> None:
    async def work() -> None:
        handlers = {"a.test": to(B), "b.test": to("http://c.test/"), "c.test": says(200)}
        async with hosts(handlers) as found:
            known = found.gates.gate("b.test", rate=900)
            await found.get()
            assert known.rate == 900
            assert found.gate("c.test").rate == 500

    run(work())


def test_a_host_can_lead_to_so_many_others_and_no_more() -> None:
    async def work() -> None:
        numbers = iter(range(1000))

        async def elsewhere(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": f"http://x{next(numbers)}.test/"})

        async with hosts({"a.test": elsewhere}, mapped=False, lookup=nowhere) as found:
            for _ in range(MAX_OTHER_HOSTS):
                assert (await fault_of(found.get())).kind is RequestFault.UNREACHABLE
            assert (await fault_of(found.get())).kind is RequestFault.BAD_REDIRECT
            assert found.gates.known_gate(f"x{MAX_OTHER_HOSTS - 1}.test") is not None
            assert found.gates.known_gate(f"x{MAX_OTHER_HOSTS}.test") is None

    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    run(work())


@pytest.mark.parametrize("target", ["169.254.169.254", "[::1]", "127.1", "inner.test"])
def test_a_redirect_into_the_own_network_is_refused(target: str) -> None:
    async def inner(host: str, port: int) -> list[str]:
        return ["10.0.0.1"]

    async def work() -> None:
        handlers = {"a.test": to(f"http://{target}/inner")}
        async with hosts(handlers, allow_private=False, lookup=inner) as found:
            assert (await fault_of(found.get())).kind is RequestFault.REFUSED_ADDRESS
            assert found.asked == {"a.test": 1}

    run(work())


# --- leases ---


def test_another_host_is_only_asked_under_its_lease(tmp_path: Path) -> None:
    """It is waited for as long as an answer; those who come after that wait no more."""

    async def work() -> None:
        mine, theirs = LocalHostLeases(tmp_path, "study a"), LocalHostLeases(tmp_path, "study b")
        handlers = {"a.test": to(B), "b.test": says(200, b"b")}
        async with hosts(handlers, leases=mine, read_timeout=0.5) as found:
            gate = HostGate("b.test", rate=1, burst=1, in_flight=1)
            lease = await theirs.take(gate)
            assert lease is not None
            begun = time.monotonic()
            error = await fault_of(found.get())
            assert 0.5 <= time.monotonic() - begun < 3
            assert error.kind is RequestFault.BAD_REDIRECT
            assert f"b.test, which is being asked by study b (process {os.getpid()}" in error.detail
            begun = time.monotonic()
            await fault_of(found.get())
            assert time.monotonic() - begun < 0.3
            assert found.asked == {"a.test": 2}

            await lease.release()
            assert (await found.get()).body == b"b"
            # It is theirs again when the answer is there.
            lease = await theirs.take(gate)
            assert lease is not None
            waiting = asyncio.create_task(found.get())
            await asyncio.sleep(0.1)
            await lease.release()
            assert (await waiting).body == b"b"

    run(work())


# --- pauses, and the end of patience ---


def test_pauses_are_waited_out_in_the_way_that_the_caller_wants() -> None:
    waits: list[float] = []

    async def wait(seconds: Callable[[], float]) -> None:
        waits.append(seconds())
        await asyncio.sleep(seconds())

    async def work() -> None:
        async with hosts({"a.test": in_turn(says(429, Retry_After="1"), says(200))}) as found:
            assert (await found.get(patience=Patience(wait=wait))).status == 200

    run(work())
    assert waits == [pytest.approx(1, abs=0.2)]


def test_a_429_is_returned_when_there_were_enough_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to a request that is refused while others are answered, which keep the host from being parked for long."""
    monkeypatch.setattr("backfill_dagster.network.limits.MIN_PARK", 0.02)
    monkeypatch.setattr("backfill_dagster.network.limits.FIRST_PARK", 0.02)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429 if request.path == "/refused" else 200)

    async def work() -> None:
        async with hosts({"a.test": handler}) as found:
            asking = asyncio.create_task(found.get(A + "refused", patience=Patience(max_park=0.5)))
            while not asking.done():
                assert (await found.get()).status == 200
                await asyncio.sleep(0.01)
            assert (await asking).status == 429
            assert found.urls.count(A + "refused") > 3

    run(work())


def test_nothing_is_asked_when_the_run_s_time_is_over() -> None:
    async def work() -> None:
        async with hosts({"a.test": in_turn(says(429, Retry_After="60"), says(200))}) as found:
            begun = time.monotonic()
            with pytest.raises(RunOverError, match="max_run_minutes"):
                await found.get(patience=Patience(run_time=RunTime(0.3)))
            assert time.monotonic() - begun < 5
            with pytest.raises(RunOverError):
                await found.get(patience=Patience(run_time=RunTime(0)))
            assert found.asked == {"a.test": 1}

    run(work())


def test_the_lease_of_another_host_is_not_waited_for_beyond_the_run_s_time(tmp_path: Path) -> None:
    async def work() -> None:
        theirs = LocalHostLeases(tmp_path, "study b")
        handlers = {"a.test": to(B), "b.test": says(200)}
        async with hosts(handlers, leases=LocalHostLeases(tmp_path, "study a"), read_timeout=15) as found:
            assert await theirs.take(HostGate("b.test", rate=1, burst=1, in_flight=1)) is not None
            with pytest.raises(RunOverError):
                await asyncio.wait_for(found.get(patience=Patience(run_time=RunTime(0.3))), 5)

    run(work())
