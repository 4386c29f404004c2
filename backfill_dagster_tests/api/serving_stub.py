"""The API in the test's process, in front of a stub of Dagster's webserver."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import yaml

from backfill_dagster.api.app import create_app, openapi_document
from backfill_dagster.api.configs import ConfigStore
from backfill_dagster.api.deployment import Deployment
from backfill_dagster.api.environment import FacadeSettings
from backfill_dagster.api.facade import Backfills
from backfill_dagster.api.graphql_client import GraphQL
from backfill_dagster.api.serving import ServerSettings
from backfill_dagster_tests.api.stub_dagster import LOCATION, StubDagster

with warnings.catch_warnings():
    # It would rather have another client than the one that this project has.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

SCOPES = {
    "reader": "read",
    "runner": "run",
    "admin": "admin",
    "operator": "read+run",
    "everything": "read+run+admin",
}
# The same in every process, for they stand in the names of tests.
TOKENS = {name: f"{hashlib.sha256(name.encode()).hexdigest()}-_Q" for name in SCOPES}
ENVIRONMENT = {
    "BACKFILL_API_TOKENS": ",".join(f"{name}:{scopes}:{TOKENS[name]}" for name, scopes in SCOPES.items()),
    "BACKFILL_API_RATE": "100000/minute",
    "BACKFILL_API_FAILED_RATE": "100000/minute",
    "BACKFILL_DAGSTER_RELOAD_SECONDS": "10",
}
# Every operation, as a client calls it, and the scopes that it needs.
OPERATIONS = (
    ("POST", "/api/backfill/start", {"run"}),
    ("GET", "/api/backfill/status/7f2b1b52-8d4e-4f0c-9a43-2f3c1d0a5b11", {"read"}),
    ("DELETE", "/api/backfill/jobs/7f2b1b52-8d4e-4f0c-9a43-2f3c1d0a5b11", {"run"}),
    ("GET", "/api/backfill/configs", {"read"}),
    ("POST", "/api/backfill/configs", {"admin"}),
)


def operations_document() -> dict[str, Any]:
    """Return the OpenAPI document without what it says of tokens: a fuzzer would spend its time on wrong ones."""
    document = openapi_document()
    return {
        **{name: part for name, part in document.items() if name != "security"},
        "components": {"schemas": document["components"]["schemas"]},
    }


def without_examples(document: Any) -> Any:
    """Return a document without its examples, of which a fuzzer makes use: some would be started, and ask servers."""
    if isinstance(document, dict):
        return {
            name: without_examples(part)
            for name, part in document.items()
            if name not in ("example", "examples")
        }
    return [without_examples(part) for part in document] if isinstance(document, list) else document


@dataclass(frozen=True)
class ApiClient:
    """Asks the API with one of the tokens."""

    client: TestClient

    def ask(self, method: str, path: str, token: str = "everything", **arguments: Any) -> httpx.Response:
        """Make a request; `arguments` are httpx's."""
        headers = [("authorization", f"Bearer {TOKENS[token]}")]
        answer: httpx.Response = self.client.request(method, path, headers=headers, **arguments)
        return answer

    def raw(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Make a request without a token of its own."""
        answer: httpx.Response = self.client.request(method, path, **arguments)
        return answer

    def start(self, **body: Any) -> httpx.Response:
        """Start a job."""
        return self.ask("POST", "/api/backfill/start", json=body)

    def store(self, yaml: str) -> httpx.Response:
        """Store a config."""
        return self.ask("POST", "/api/backfill/configs", json={"yaml": yaml})


def facade_settings(**environment: str) -> FacadeSettings:
    """Return what an environment says of the façade."""
    return FacadeSettings.from_environment({**ENVIRONMENT, **environment})


@contextmanager
def stub_backfills(dagster: StubDagster, settings: FacadeSettings) -> Iterator[Backfills]:
    """Give a façade of the stub."""
    graphql = GraphQL(
        "http://stub.test", timeout_seconds=settings.timeout_seconds, transport=dagster.transport()
    )
    store = ConfigStore(dagster.configs, settings.reach)
    yield Backfills(Deployment(graphql, LOCATION), store, reload_seconds=settings.reload_seconds)
    graphql.close()


class _Served:
    """An application, and the stub that it is in front of at the moment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.dagster: StubDagster | None = None
        self.app = create_app(
            ServerSettings.from_environment({**ENVIRONMENT, **environment}),
            facade_settings(**environment),
            self._connect,
        )

    def _connect(self, settings: FacadeSettings) -> AbstractContextManager[Backfills]:
        assert self.dagster is not None
        return stub_backfills(self.dagster, settings)


@cache
def _usual() -> _Served:
    # Hundreds of tests ask it, none so often that it would count; to make one takes longer than most of them.
    return _Served({})


@contextmanager
def serving(dagster: StubDagster, address: str = "192.0.2.7", **environment: str) -> Iterator[ApiClient]:
    """Give a client of the API under an environment; it asks from an address."""
    served = _Served(environment) if environment else _usual()
    served.dagster = dagster
    # What would be a server's 500 is an answer here as well.
    with TestClient(served.app, raise_server_exceptions=False, client=(address, 50000)) as client:
        yield ApiClient(client)


def study_yaml(name: str = "pilot", **parts: Any) -> str:
    """Return the YAML of a small study, with further parts."""
    body = {"name": name, "source": {"type": "inline", "dids": ["did:plc:ewvi7nxzyoun6zhxrhs64oiz"]}, **parts}
    return yaml.safe_dump({"backfill": body})
