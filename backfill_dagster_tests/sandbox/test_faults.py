from __future__ import annotations

import gzip
import http.client
import time
from collections.abc import Callable

import pytest

from backfill_dagster.sandbox.faults import (
    GET_REPO,
    AccountFault,
    Faults,
    HostDown,
    ResetMidBody,
    ServerError,
    Stall,
    TooManyRequests,
    Truncate,
)
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.sandbox.truth import AccountTruth

from .conftest import SMALL, Ask, asker

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
