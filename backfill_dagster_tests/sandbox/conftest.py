from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.network import SandboxNetwork

if TYPE_CHECKING:
    from backfill_dagster.sandbox.population import Role
    from backfill_dagster.sandbox.truth import AccountTruth

SMALL = SandboxSettings(seed=1, accounts=60, hosts=5, records=60)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


Ask = Callable[..., Reply]


@pytest.fixture(scope="session")
def _running() -> Iterator[SandboxNetwork]:
    with SandboxNetwork(SMALL) as network:
        yield network


@pytest.fixture
def network(_running: SandboxNetwork) -> Iterator[SandboxNetwork]:
    """The default population with small repositories; without faults and with an empty log at first."""
    _running.faults.clear()
    _running.requests.clear()
    yield _running
    _running.faults.clear()


@pytest.fixture
def ask(network: SandboxNetwork) -> Ask:
    """Send one request to a host of the sandbox by the standard library's client."""
    return asker(network)


def asker(network: SandboxNetwork) -> Ask:
    def send(host: str, path: str, *, method: str = "GET", timeout: float = 10, **headers: str) -> Reply:
        address, port = network.connect_to[f"{host}:80"].split(":")
        with closing(http.client.HTTPConnection(address, int(port), timeout=timeout)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers={"Host": host, **named})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    return send


@pytest.fixture
def by_role(network: SandboxNetwork) -> Callable[[Role], AccountTruth]:
    """The first account of a role."""

    def find(role: Role) -> AccountTruth:
        return next(account for account in network.truth.accounts() if account.role is role)

    return find
