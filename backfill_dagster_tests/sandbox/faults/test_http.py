from __future__ import annotations

import gzip
import hashlib
import http.client
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urldefrag, urljoin

import pytest

from backfill_dagster.sandbox.faults import (
    GET_REPO,
    AccountFault,
    EmptyBody,
    EndlessBody,
    Faults,
    GzipBomb,
    HostDown,
    HostileRateLimits,
    HtmlPage,
    RedirectLoop,
    RedirectTo,
    ResetMidBody,
    ServerError,
    SlowDrip,
    Stall,
    TooManyRequests,
    Truncate,
    WrongContentType,
    WrongEncoding,
)
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.truth import AccountTruth
from backfill_dagster_tests.sandbox.conftest import SMALL, Ask, asker
from backfill_dagster_tests.sandbox.reading import frames

ByRole = Callable[[Role], AccountTruth]


@pytest.fixture
def account(by_role: ByRole) -> AccountTruth:
    return by_role(Role.UNICODE)


@pytest.fixture
def host(account: AccountTruth) -> str:
    assert account.pds is not None
    return account.pds.removeprefix("http://")


@pytest.fixture
def path(account: AccountTruth) -> str:
    return f"{GET_REPO}?did={account.did}"


@pytest.fixture
def whole(ask: Ask, host: str, path: str) -> bytes:
    return ask(host, path).body


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_error(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str, status: int
) -> None:
    network.faults.set_account(account.did, ServerError(status))
    reply = ask(host, path)
    assert reply.status == status
    assert reply.json["error"] == "InternalServerError"


def test_too_many_requests(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str
) -> None:
    network.faults.set_account(account.did, TooManyRequests(retry_after=7))
    reply = ask(host, path)
    assert reply.status == 429
    assert reply.json == {"error": "RateLimitExceeded", "message": "Rate Limit Exceeded"}
    assert reply.headers["Retry-After"] == "7"
    assert 6 <= int(reply.headers["RateLimit-Reset"]) - time.time() <= 8

    network.faults.set_account(account.did, TooManyRequests("no_headers"))
    reply = ask(host, path)
    assert reply.status == 429
    assert not [name for name in reply.headers if name.startswith(("Rate", "Retry"))]

    network.faults.set_account(account.did, TooManyRequests("html"))
    reply = ask(host, path)
    assert (reply.status, reply.headers["Content-Type"]) == (429, "text/html")
    assert reply.body.startswith(b"<html>")


@pytest.mark.parametrize("after_bytes", [0, 1, 1000])
def test_stall(
    network: SandboxNetwork,
    ask: Ask,
    account: AccountTruth,
    host: str,
    path: str,
    whole: bytes,
    after_bytes: int,
) -> None:
    network.faults.set_account(account.did, Stall(after_bytes, 0.3))
    started = time.monotonic()
    assert ask(host, path).body == whole
    assert time.monotonic() - started >= 0.3
    with pytest.raises(TimeoutError):
        ask(host, path, timeout=0.1)


@pytest.mark.parametrize("after_bytes", [0, 1000])
def test_reset(
    network: SandboxNetwork,
    ask: Ask,
    account: AccountTruth,
    host: str,
    path: str,
    whole: bytes,
    after_bytes: int,
) -> None:
    network.faults.set_account(account.did, ResetMidBody(after_bytes))
    with pytest.raises(ConnectionResetError):
        ask(host, path)
    network.faults.clear()
    assert ask(host, path).body == whole


@pytest.mark.parametrize("at_byte", [0, 1, 59, 5000, -1])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_truncation_is_sound_http(
    network: SandboxNetwork,
    ask: Ask,
    account: AccountTruth,
    host: str,
    path: str,
    whole: bytes,
    at_byte: int,
    encoding: str,
) -> None:
    network.faults.set_account(account.did, Truncate(at_byte))
    reply = ask(host, path, Accept_Encoding=encoding)
    body = gzip.decompress(reply.body) if encoding == "gzip" else reply.body
    assert (reply.status, body) == (200, whole[:at_byte])


def test_a_host_that_is_down_refuses_connections_and_comes_back_on_its_port(
    network: SandboxNetwork, ask: Ask, host: str, path: str, whole: bytes
) -> None:
    where = network.connect_to[f"{host}:80"]
    address, port = where.split(":")
    kept = http.client.HTTPConnection(address, int(port), timeout=5)
    kept.request("GET", "/xrpc/_health", headers={"Host": host})
    kept.getresponse().read()

    network.faults.set_host(host, HostDown())
    with pytest.raises(ConnectionRefusedError):
        ask(host, path)
    # A connection that was open is cut as well.
    with pytest.raises(ConnectionError):
        _ask_again(kept, host)
    kept.close()
    others = [other for other in network.hosts if other != host]
    assert all(ask(other, "/xrpc/_health").status == 200 for other in others)
    assert network.connect_to[f"{host}:80"] == where

    network.faults.clear()
    assert ask(host, path).body == whole


def _ask_again(connection: http.client.HTTPConnection, host: str) -> None:
    connection.request("GET", "/xrpc/_health", headers={"Host": host})
    connection.getresponse()


def test_going_down_cuts_an_answer_that_is_under_way(network: SandboxNetwork, host: str, path: str) -> None:
    network.faults.set_host(host, Stall(1000, 60))
    address, port = network.connect_to[f"{host}:80"].split(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=5)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    assert len(response.read(1000)) == 1000
    started = time.monotonic()
    network.faults.set_host(host, HostDown())
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        response.read()
    connection.close()
    assert time.monotonic() - started < 3


def test_a_host_may_be_down_from_the_start() -> None:
    faults = Faults()
    faults.set_host("pds2.sandbox.test", HostDown())
    with SandboxNetwork(SMALL, faults=faults) as network:
        ask = asker(network)
        with pytest.raises(ConnectionRefusedError):
            ask("pds2.sandbox.test", "/xrpc/_health")
        assert ask("pds1.sandbox.test", "/xrpc/_health").status == 200
        faults.set_host("pds2.sandbox.test")
        assert ask("pds2.sandbox.test", "/xrpc/_health").status == 200


def test_the_directory_can_fail_too(network: SandboxNetwork, ask: Ask, account: AccountTruth) -> None:
    network.faults.set_host("plc.sandbox.test", HostDown())
    with pytest.raises(ConnectionRefusedError):
        ask("plc.sandbox.test", f"/{account.did}")
    network.faults.set_host("plc.sandbox.test", ServerError(500))
    assert ask("plc.sandbox.test", f"/{account.did}").status == 500


def test_a_fault_meets_what_it_is_meant_for(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str
) -> None:
    status = f"/xrpc/com.atproto.sync.getRepoStatus?did={account.did}"
    neighbour = next(
        found
        for found in network.truth.accounts()
        if found.pds == account.pds and found.is_complete and found != account
    )
    other_path = f"{GET_REPO}?did={neighbour.did}"

    network.faults.set_account(account.did, ServerError())
    assert [ask(host, asked).status for asked in (path, status, other_path)] == [503, 200, 200]
    network.faults.set_account(account.did, ServerError(), paths=["/xrpc/com.atproto.sync.getRepoStatus"])
    assert [ask(host, asked).status for asked in (path, status, other_path)] == [200, 503, 200]
    network.faults.set_account(account.did)
    network.faults.set_host(host, ServerError())
    assert [ask(host, asked).status for asked in (path, status, other_path)] == [503, 503, 503]
    network.faults.set_host(host, ServerError(), paths=[GET_REPO])
    assert [ask(host, asked).status for asked in (path, status, other_path)] == [503, 200, 503]
    network.faults.clear()
    assert ask(host, path).status == 200


def test_a_fault_may_end_by_itself(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str
) -> None:
    network.faults.set_account(account.did, ServerError(), times=2)
    assert [ask(host, path).status for _ in range(4)] == [503, 503, 200, 200]


def test_faults_add_up(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str, whole: bytes
) -> None:
    both: tuple[AccountFault, ...] = (Truncate(2000), Stall(1000, 0.2))
    network.faults.set_account(account.did, *both)
    started = time.monotonic()
    assert ask(host, path).body == whole[:2000]
    assert time.monotonic() - started >= 0.2


def test_a_slow_body_comes_at_its_pace(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str, whole: bytes
) -> None:
    network.faults.set_account(account.did, Truncate(3000), SlowDrip(10_000))
    started = time.monotonic()
    assert ask(host, path).body == whole[:3000]
    assert time.monotonic() - started >= 0.25
    # However slow, there is something in every moment.
    network.faults.set_account(account.did, SlowDrip(100))
    started = time.monotonic()
    with closing(begin(network, host, path)) as connection:
        assert connection.getresponse().read(20) == whole[:20]
        assert 0.15 <= time.monotonic() - started < 3


def begin(network: SandboxNetwork, host: str, path: str) -> http.client.HTTPConnection:
    address, port = network.connect_to[f"{host}:80"].split(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=5)
    connection.request("GET", path, headers={"Host": host})
    return connection


def test_an_endless_body_is_sound_as_long_as_it_is_read(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str, whole: bytes
) -> None:
    network.faults.set_account(account.did, EndlessBody())
    with closing(begin(network, host, path)) as connection:
        body = connection.getresponse().read(20_000_000)
        # Meanwhile others are served.
        assert ask(host, "/xrpc/_health").status == 200
    assert body.startswith(whole)
    section = 3 + 36 + 65_538
    for cid, data in frames(body[: len(whole) + 2 * section])[1][-2:]:
        assert cid[4:] == hashlib.sha256(data).digest()
    # The server notices that the client has gone.
    deadline = time.monotonic() + 5
    while any(request.ended is None for request in network.requests.all()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_sandbox_stops_beside_an_endless_body() -> None:
    with SandboxNetwork(SMALL) as network:
        account = next(found for found in network.truth.accounts() if found.is_complete)
        network.faults.set_account(account.did, EndlessBody())
        connection = begin(network, str(account.pds)[7:], f"{GET_REPO}?did={account.did}")
        assert len(connection.getresponse().read(1000)) == 1000
        started = time.monotonic()
    assert time.monotonic() - started < 3
    connection.close()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_gzip_bomb_for_whoever_asks(
    network: SandboxNetwork,
    ask: Ask,
    account: AccountTruth,
    host: str,
    path: str,
    whole: bytes,
    encoding: str,
) -> None:
    network.faults.set_account(account.did, GzipBomb(megabytes=64))
    reply = ask(host, path, Accept_Encoding=encoding)
    assert reply.headers["Content-Encoding"] == "gzip"
    assert len(reply.body) < 64 * 1100 + len(whole)
    inside = gzip.decompress(reply.body)
    assert inside[: len(whole)] == whole
    assert inside[len(whole) :].count(0) == len(inside) - len(whole) == 64 * 2**20


def test_bodies_that_are_none(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str
) -> None:
    network.faults.set_account(account.did, EmptyBody())
    reply = ask(host, path)
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (200, b"", "application/vnd.ipld.car")
    network.faults.set_account(account.did, HtmlPage())
    reply = ask(host, path)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert reply.body.startswith(b"<!DOCTYPE html>")


def test_headers_that_are_wrong(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str, whole: bytes
) -> None:
    network.faults.set_account(account.did, WrongContentType("image/png"))
    reply = ask(host, path)
    assert (reply.body, reply.headers["Content-Type"]) == (whole, "image/png")
    network.faults.set_account(account.did, WrongEncoding("br"))
    reply = ask(host, path, Accept_Encoding="gzip")
    assert (reply.body, reply.headers["Content-Encoding"]) == (whole, "br")


@pytest.mark.parametrize(
    ("style", "remaining", "policy"),
    [
        ("past", "0", "3000;w=300"),
        ("far", "0", "3000;w=300"),
        ("zero", "0", "0;w=0"),
        ("negative", "-1", "-3000;w=-300"),
        ("huge", "9" * 400, "9" * 400 + ";w=" + "9" * 400),
        ("words", "none", "few;w=NaN"),
        ("crawl", "1", "1;w=86400"),
    ],
)
def test_rate_limits_of_a_hostile_server(
    network: SandboxNetwork,
    ask: Ask,
    account: AccountTruth,
    host: str,
    path: str,
    whole: bytes,
    style: str,
    remaining: str,
    policy: str,
) -> None:
    fault = HostileRateLimits(style)  # type: ignore[arg-type]
    network.faults.set_account(account.did, fault)
    reply = ask(host, path)
    assert (reply.status, reply.body) == (200, whole)
    assert (reply.headers["RateLimit-Remaining"], reply.headers["RateLimit-Policy"]) == (remaining, policy)
    network.faults.set_account(account.did, TooManyRequests(retry_after=3), fault)
    reply = ask(host, path)
    assert reply.status == 429
    assert reply.headers["RateLimit-Remaining"] == remaining
    assert reply.headers["Retry-After"] != "3"
    with closing(begin(network, host, path)) as connection:
        names = [name.lower() for name, _ in connection.getresponse().getheaders()]
    assert len(names) == len(set(names))


def test_a_redirect_to_itself(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str
) -> None:
    network.faults.set_account(account.did, RedirectLoop())
    url = f"http://{host}{path}"
    for _ in range(3):
        reply = ask(host, url.removeprefix(f"http://{host}"))
        assert reply.status == 302
        url = urldefrag(urljoin(url, reply.headers["Location"])).url
        assert url == f"http://{host}{path}"


def test_redirects_elsewhere(
    network: SandboxNetwork, ask: Ask, account: AccountTruth, host: str, path: str
) -> None:
    network.faults.set_account(account.did, RedirectTo())
    reply = ask(host, path)
    assert (reply.status, reply.headers["Location"]) == (302, "http://169.254.169.254/latest/meta-data/")
    network.faults.set_account(account.did, RedirectTo("ftp://example.com/", status=307))
    reply = ask(host, path)
    assert (reply.status, reply.headers["Location"]) == (307, "ftp://example.com/")


def test_documents_of_a_did_web_meet_the_faults_of_its_account(
    network: SandboxNetwork, ask: Ask, by_role: ByRole
) -> None:
    account = by_role(Role.DID_WEB)
    host, path = account.did.removeprefix("did:web:"), "/.well-known/did.json"
    network.faults.set_account(account.did, EmptyBody(), paths=[path])
    assert ask(host, path).body == b""
    assert network.requests.all()[-1].did == account.did
    network.faults.clear()
    assert ask(host, path).json["id"] == account.did
