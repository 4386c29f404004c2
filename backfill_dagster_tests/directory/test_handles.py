"""Handles against servers on loopback: DNS, the handles' own hosts, and the directory that must agree."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from backfill_dagster.config.network import Network
from backfill_dagster.config.processing import Processing
from backfill_dagster.dids.handle_syntax import HandleRejection
from backfill_dagster.directory.handles import CONCURRENCY, HandleAnswer, HandleResolver
from backfill_dagster.directory.resolver import Resolver
from backfill_dagster.network.addresses import Lookup
from backfill_dagster.network.dns import TxtLookup
from backfill_dagster.network.limits import HostGates
from backfill_dagster.network.turns import Turns
from backfill_dagster_tests.network.dns_server import DnsServer
from backfill_dagster_tests.network.loopback import Handler, loopback_client, serve

ALICE = "did:plc:" + "a" * 24
BOB = "did:plc:" + "b" * 24
NOT_FOUND = HandleAnswer(None, HandleRejection.NOT_FOUND)
UNREACHABLE = HandleAnswer(None, HandleRejection.UNREACHABLE)


@dataclass
class Web:
    """The PLC directory, with the handles that its documents name, and the hosts of handles; by `Host`."""

    documents: Mapping[str, list[str]] = field(default_factory=dict)
    hosts: Mapping[str, Handler] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    peak: int = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            await asyncio.sleep(0.001)
            return await self._answer(request)
        finally:
            self.under_way -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/.well-known/atproto-did":
            self.asked[request.host] += 1
            return await self.hosts[request.host](request)
        did = request.path.removeprefix("/")
        self.asked[did] += 1
        if did not in self.documents:
            return web.json_response({"message": "DID not registered"}, status=404)
        return web.json_response(
            {
                "id": did,
                "alsoKnownAs": [f"at://{handle}" for handle in self.documents[did]],
                "service": [
                    {
                        "id": "#atproto_pds",
                        "type": "AtprotoPersonalDataServer",
                        "serviceEndpoint": "https://pds.example.com",
                    }
                ],
            }
        )


def says(body: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        content = body.encode() if isinstance(body, str) else body
        return web.Response(status=status, body=content, headers=headers)

    return handler


def resolve(
    *handles: str,
    servers: Web,
    dns: DnsServer | None = None,
    allow_private: bool = True,
    mapped: bool = True,
    in_sandbox: bool = False,
    rate: float = 1000,
    timeout: float = 2,
    lookup: Lookup | None = None,
) -> list[HandleAnswer]:
    async def run() -> list[HandleAnswer]:
        async with serve(servers) as address:
            hosts = {f"{host}:80": address for host in servers.hosts} if mapped else {}
            client = loopback_client(
                connect_to={"plc.test:80": address, **hosts},
                allow_private=allow_private,
                connect_timeout=timeout,
                read_timeout=timeout,
                lookup=lookup,
            )
            async with client as http:
                gates = HostGates(rate=1000, burst=1, in_flight=50)
                processing = Processing(max_retries=1, requests_per_second=rate, requests_in_flight=50)
                network = Network(
                    plc_url="http://plc.test", plc_requests_per_second=1000, retry_base_seconds=0.001
                )
                turns = Turns(http, gates, None, rate=1000, in_flight=50)
                resolver = HandleResolver(
                    Resolver(turns, gates, network, processing),
                    gates,
                    http.policy,
                    processing,
                    txt=None if dns is None else TxtLookup(dns.address, 0.5),
                    in_sandbox=in_sandbox,
                )
                return await resolver.resolve_all(handles)

    with ExitStack() as stack:
        if dns is not None:
            stack.enter_context(dns)
        return asyncio.run(run())


def test_dns_comes_first_and_the_handle_s_host_is_not_asked() -> None:
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": says(BOB)})
    dns = DnsServer({"_atproto.alice.com": [f"did={ALICE}", "v=spf1 -all"]})

    assert resolve("@Alice.com", servers=servers, dns=dns) == [HandleAnswer(ALICE)]
    assert servers.asked == {ALICE: 1}


@pytest.mark.parametrize("body", [ALICE, f"{ALICE}\n", f"\ufeff {ALICE}\r\n"])
def test_the_handle_s_host_is_asked_if_dns_knows_nothing(body: str) -> None:
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": says(body)})

    assert resolve("alice.com", servers=servers, dns=DnsServer({})) == [HandleAnswer(ALICE)]
    assert resolve("alice.com", servers=servers) == [HandleAnswer(ALICE)]


def test_the_same_did_twice_in_dns_is_no_conflict_and_two_are_one() -> None:
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": says(ALICE)})
    twice = DnsServer({"_atproto.alice.com": [f"did={ALICE}", f"did=|{ALICE}"]})
    two = DnsServer({"_atproto.alice.com": [f"did={ALICE}", f"did={BOB}"]})

    assert resolve("alice.com", servers=servers, dns=twice) == [HandleAnswer(ALICE)]
    assert resolve("alice.com", servers=servers, dns=two) == [HandleAnswer(None, HandleRejection.CONFLICT)]
    assert servers.asked["alice.com"] == 0


@pytest.mark.parametrize("text", ["did=", "did=nobody", "DID=did:plc:" + "a" * 24, "did=did:key:z1"])
def test_what_is_no_did_in_dns_is_passed_over(text: str) -> None:
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": says(ALICE)})

    assert resolve("alice.com", servers=servers, dns=DnsServer({"_atproto.alice.com": [text]})) == [
        HandleAnswer(ALICE)
    ]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["alice.com", "other.com"], HandleAnswer(ALICE)),
        (["ALICE.com"], HandleAnswer(ALICE)),
        (["other.com", "alice.com"], HandleAnswer(ALICE, HandleRejection.MISMATCH)),
        (["bob.com"], HandleAnswer(ALICE, HandleRejection.MISMATCH)),
        ([], HandleAnswer(ALICE, HandleRejection.MISMATCH)),
    ],
)
def test_the_document_must_name_the_handle_before_any_other(named: list[str], expected: HandleAnswer) -> None:
    servers = Web({ALICE: named}, {"alice.com": says(ALICE)})

    assert resolve("alice.com", servers=servers) == [expected]


def test_a_did_that_the_directory_does_not_know_confirms_nothing() -> None:
    servers = Web({}, {"alice.com": says(ALICE)})

    assert resolve("alice.com", servers=servers) == [HandleAnswer(ALICE, HandleRejection.MISMATCH)]


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (says("<html>Not here</html>", 404), NOT_FOUND),
        (says("gone", 410), NOT_FOUND),
        (says("no", 403), NOT_FOUND),
        (says("<html>welcome to alice.com</html>"), NOT_FOUND),
        (says(""), NOT_FOUND),
        (says(b"\xff\xfe"), NOT_FOUND),
        (says("did:plc:short"), NOT_FOUND),
        (says(f"{ALICE}\n{BOB}"), NOT_FOUND),
        (says("x" * 10_000_000), NOT_FOUND),
        (says("sorry", 500), UNREACHABLE),
        (says("sorry", 503), UNREACHABLE),
    ],
)
def test_what_a_handle_s_host_may_answer(handler: Handler, expected: HandleAnswer) -> None:
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": handler})

    assert resolve("alice.com", servers=servers) == [expected]


def test_a_host_that_never_ends_its_answer_is_given_up() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    started = time.monotonic()
    assert resolve("alice.com", servers=Web({}, {"alice.com": drip}), timeout=0.3) == [UNREACHABLE]
    assert time.monotonic() - started < 20


def test_a_passing_failure_of_dns_counts_only_if_the_host_knows_nothing_either() -> None:
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": says(ALICE), "bob.com": says("?", 404)})
    names = ["_atproto.alice.com", "_atproto.bob.com"]

    for dns in (DnsServer({}, failing=names), DnsServer({}, silent=names)):
        assert resolve("alice.com", "bob.com", servers=servers, dns=dns) == [HandleAnswer(ALICE), UNREACHABLE]


def test_a_directory_that_fails_leaves_the_handle_unsettled() -> None:
    async def fails(request: web.Request) -> web.StreamResponse:
        return await says(ALICE)(request) if "well-known" in request.path else web.Response(status=500)

    servers = Web({}, {"alice.com": says(ALICE)})
    servers._answer = fails  # type: ignore[method-assign]
    assert resolve("alice.com", servers=servers) == [HandleAnswer(ALICE, HandleRejection.UNREACHABLE)]


def test_private_addresses_are_not_talked_to() -> None:
    servers = Web({}, {"alice.com": says(ALICE)})

    async def inside(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    answers = resolve("alice.com", servers=servers, mapped=False, allow_private=False, lookup=inside)
    assert answers == [HandleAnswer(None, HandleRejection.REFUSED_ADDRESS)]
    assert not servers.asked


def test_a_redirect_to_a_private_address_is_refused() -> None:
    leads = says("", 302, {"Location": "http://127.0.0.1:9/.well-known/atproto-did"})
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": leads})

    [answer] = resolve("alice.com", servers=servers, allow_private=False)
    assert answer == HandleAnswer(None, HandleRejection.REFUSED_ADDRESS)


def test_a_redirect_to_another_host_is_followed() -> None:
    leads = says("", 302, {"Location": "http://www.alice.com/did"})
    servers = Web({ALICE: ["alice.com"]}, {"alice.com": leads, "www.alice.com": says(ALICE)})

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.host == "www.alice.com":
            return await says(ALICE)(request)
        return await Web._answer(servers, request)

    servers._answer = answer  # type: ignore[method-assign]
    assert resolve("alice.com", servers=servers) == [HandleAnswer(ALICE)]


@pytest.mark.parametrize(
    "handle", ["alice", "did:plc:" + "a" * 24, "alice.local", "alice.test", "127.0.0.1", ""]
)
def test_what_is_no_handle_is_not_looked_up(handle: str) -> None:
    servers, dns = Web({}, {}), DnsServer({})

    assert resolve(handle, servers=servers, dns=dns) == [HandleAnswer(None, HandleRejection.BAD_HANDLE)]
    assert not servers.asked
    assert not dns.asked


_LETTERS = str.maketrans("0189", "wxyz")


def test_many_are_looked_up_at_once_in_order_and_each_once() -> None:
    dids = {
        f"h{number}.com": "did:plc:" + f"{number:04}".translate(_LETTERS).rjust(24, "a")
        for number in range(300)
    }
    servers = Web(
        {did: [handle] for handle, did in dids.items()}, {handle: says(did) for handle, did in dids.items()}
    )
    handles = [*dids, *dids]

    answers = resolve(*handles, servers=servers)

    assert [answer.did for answer in answers] == [*dids.values(), *dids.values()]
    assert set(servers.asked.values()) == {1}
    assert 4 < servers.peak <= CONCURRENCY


def test_handles_of_one_provider_share_its_pace() -> None:
    handles = [f"h{number}.provider.com" for number in range(12)]
    servers = Web({}, {handle: says("?", 404) for handle in handles})

    started = time.monotonic()
    assert resolve(*handles, servers=servers, rate=20) == [NOT_FOUND] * 12
    # A burst of one, and then eleven at twenty a second.
    assert time.monotonic() - started > 0.5
