"""One host, asked until it gives an answer that is of use."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.network.asking import NoAnswerError, PoliteHost
from backfill_dagster.network.leases import LocalHostLeases
from backfill_dagster.network.limits import HostGate, HostGates
from backfill_dagster.network.patience import Patience, RunOverError, RunTime
from backfill_dagster.network.turns import Turns
from backfill_dagster_tests.network.loopback import Handler, loopback_client, serve

Answers = list[Callable[[], web.Response]]


def read(body: bytes) -> str:
    if body != b"good":
        raise BadAnswerError(f"{len(body)} bytes are not good")
    return "read"


def asked(
    answers: Answers, *, patience: Patience | None = None, retries: int = 2
) -> tuple[str | Exception, int]:
    """Ask a server that gives these answers, the last for ever; returns what came of it, and how often it was asked."""
    seen = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        seen += 1
        return answers[min(seen, len(answers)) - 1]()

    async def run() -> str | Exception:
        async with serve(handler) as address:
            try:
                return await ask(address, patience, retries)
            except (NoAnswerError, RunOverError) as error:
                return error

    return asyncio.run(asyncio.wait_for(run(), 20)), seen


async def ask(
    address: str, patience: Patience | None = None, retries: int = 2, leases: LocalHostLeases | None = None
) -> str:
    async with loopback_client(read_timeout=0.5) as http:
        gates = HostGates(rate=1000, burst=1000, in_flight=4)
        turns = Turns(http, gates, None, rate=1000, in_flight=4)
        host = PoliteHost(turns, gates.gate(address), leases, patience or Patience(), retries, 0.001)
        return await host.ask(f"http://{address}/x", {"a": "b"}, max_bytes=1000, read=read)


def good() -> web.Response:
    return web.Response(body=b"good")


@pytest.mark.parametrize(
    "bad",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(status=503),
        lambda: web.Response(status=429, headers={"Retry-After": "1"}),
        lambda: web.Response(body=b"bad"),
    ],
)
def test_what_passes_is_asked_for_again(bad: Callable[[], web.Response]) -> None:
    assert asked([bad, good]) == ("read", 2)


@pytest.mark.parametrize(
    ("bad", "times", "said"),
    [
        (lambda: web.Response(status=502, text="down"), 3, "HTTP 502: down"),
        (lambda: web.Response(body=b"bad"), 3, "3 bytes are not good"),
        (lambda: web.Response(status=400, text="no\nsuch"), 1, "HTTP 400: no such"),
        (lambda: web.Response(status=404, text="did:plc:abc is gone"), 1, "HTTP 404: did:… is gone"),
        (lambda: web.Response(body=b"x" * 2000), 1, "too_large"),
        (
            lambda: web.Response(status=302, headers={"Location": "ftp://x?c=did%3Aplc%3Aabc"}),
            1,
            "bad_redirect",
        ),
    ],
)
def test_what_lasts_is_an_error_that_names_the_host_and_no_account(
    bad: Callable[[], web.Response], times: int, said: str
) -> None:
    error, seen = asked([bad])

    assert seen == times
    assert isinstance(error, NoAnswerError)
    assert str(error).startswith("127.0.0.1:")
    assert said in str(error)
    assert "abc" not in str(error)


def test_a_host_that_wants_too_long_a_pause_and_one_that_is_not_there() -> None:
    parked, seen = asked(
        [lambda: web.Response(status=429, headers={"Retry-After": "600"})], patience=Patience(max_park=1)
    )
    assert isinstance(parked, NoAnswerError)
    assert seen == 1

    with pytest.raises(NoAnswerError, match="unreachable"):
        asyncio.run(ask("127.0.0.1:1"))


def test_nothing_is_asked_after_the_run() -> None:
    error, seen = asked([good], patience=Patience(run_time=RunTime(0)))
    assert isinstance(error, RunOverError)
    assert seen == 0


def test_another_who_holds_the_lease_is_waited_for_until_the_run_ends(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return good()

    async def run(handler: Handler) -> Any:
        leases = LocalHostLeases(tmp_path, "this run")
        async with serve(handler) as address:
            held = await leases.take(HostGate(address, rate=1, burst=1, in_flight=1))
            assert held is not None
            with pytest.raises(RunOverError, match="this run"):
                await ask(address, Patience(run_time=RunTime(0.3)), leases=leases)
            await held.release()
            return await ask(address, leases=leases)

    assert asyncio.run(asyncio.wait_for(run(handler), 20)) == "read"
