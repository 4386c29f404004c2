"""Which accounts have moved on since: what a host says of it, and what becomes of one that says little."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from aiohttp import web

from backfill_dagster.network.limits import HostGate, HostGates
from backfill_dagster.network.patience import Patience, RunTime
from backfill_dagster.network.turns import Turns
from backfill_dagster.repos.revisions import RevisionSource, unchanged_accounts
from backfill_dagster_tests.network.loopback import Handler, loopback_client, serve

Result = TypeVar("Result")
KNOWN = {f"did:plc:{name * 24}": f"rev{name}" for name in "abcdefghij"}
ONE = dict(list(KNOWN.items())[:1])


def asking(
    handler: Handler,
    do: Callable[[RevisionSource], Coroutine[Any, Any, Result]],
    patience: Patience | None = None,
) -> tuple[Result, Counter[str]]:
    """Return what `do` returns, and how often each method was asked for."""
    asked: Counter[str] = Counter()

    async def count(request: web.Request) -> web.StreamResponse:
        asked[request.path.rpartition(".")[2]] += 1
        return await handler(request)

    async def run() -> Result:
        async with serve(count) as address, loopback_client(read_timeout=0.2) as http:
            gates = HostGates(rate=1000, burst=1000, in_flight=4)
            turns = Turns(http, gates, None, rate=1000, in_flight=4)
            source = RevisionSource(turns, gates.gate(address), f"http://{address}", patience or Patience())
            return await do(source)

    return asyncio.run(asyncio.wait_for(run(), 20)), asked


async def honest(request: web.Request) -> web.StreamResponse:
    if request.path.endswith("listRepos"):
        return web.json_response({"repos": [{"did": did, "rev": rev} for did, rev in KNOWN.items()]})
    return web.json_response({"cid": "x", "rev": KNOWN[request.query["did"]]})


@pytest.mark.parametrize(
    ("known", "asked"), [(KNOWN, {"listRepos": 1}), (ONE, {"getLatestCommit": 1})], ids=["many", "one"]
)
def test_accounts_at_the_same_revision_are_unchanged(known: dict[str, str], asked: dict[str, int]) -> None:
    moved = {**known, next(iter(known)): "rev0"}

    found, counted = asking(honest, lambda source: unchanged_accounts(source, known))
    assert (found, dict(counted)) == (set(known), asked)
    assert asking(honest, lambda source: unchanged_accounts(source, moved))[0] == known.keys() - {
        next(iter(known))
    }


def test_a_pause_is_waited_out_in_the_caller_s_way() -> None:
    refusals = [429]
    waits: list[float] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if refusals:
            return web.Response(status=refusals.pop(), headers={"Retry-After": "1"})
        return await honest(request)

    async def wait(seconds: Callable[[], float]) -> None:
        waits.append(seconds())
        await asyncio.sleep(seconds())

    patience = Patience(wait=wait)
    found, asked = asking(handler, lambda source: unchanged_accounts(source, KNOWN), patience)

    assert (found, dict(asked)) == (set(KNOWN), {"listRepos": 2})
    assert waits == [pytest.approx(1, abs=0.2)]


@pytest.mark.parametrize(
    "patience",
    [lambda: Patience(max_park=300), lambda: Patience(run_time=RunTime(0.5))],
    ids=["max_park", "max_run"],
)
def test_a_host_that_is_parked_for_too_long_leaves_its_accounts_to_be_fetched(
    patience: Callable[[], Patience],
) -> None:
    async def refused(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "600"})

    begun = time.monotonic()
    found, asked = asking(refused, lambda source: unchanged_accounts(source, KNOWN), patience())

    assert time.monotonic() - begun < 5
    assert (found, asked.total()) == (set(), 1)


def test_a_host_that_is_not_heard_is_not_asked_about_every_account() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    found, asked = asking(silent, lambda source: unchanged_accounts(source, KNOWN))

    assert found == set()
    assert asked == {"listRepos": 1, "getLatestCommit": 3}


@pytest.mark.parametrize(
    "odd",
    [
        [{"repos": [{"did": []}, {"did": {}}, 5, None, {}], "cursor": "1"}],
        [{"repos": {"did": "x"}, "cursor": "1"}],
        [{"repos": [], "cursor": 5}],
        ["repos"],
    ],
)
def test_a_list_that_makes_no_sense_leaves_its_accounts_to_be_asked_for(odd: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("listRepos"):
            return web.json_response(odd[0])
        return await honest(request)

    found, asked = asking(handler, lambda source: unchanged_accounts(source, KNOWN))

    assert found == set(KNOWN)
    assert asked == {"listRepos": 1, "getLatestCommit": len(KNOWN)}


def test_the_gate_heeds_what_the_answers_say() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await honest(request)
        answer.headers.update({"RateLimit-Policy": "100;w=100"})
        return answer

    async def do(source: RevisionSource) -> HostGate:
        await unchanged_accounts(source, ONE)
        return source.gate

    assert asking(handler, do)[0].rate < 1
