"""Everyone on a host, and everyone with records of a collection: whole lists, or an error that names the host."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from backfill_dagster.config.sources import CollectionSource, PdsSource
from backfill_dagster.dids.sources.collection import CollectionEntries
from backfill_dagster.dids.sources.pds import PdsEntries
from backfill_dagster.errors import SourceError
from backfill_dagster.repos import repo_list
from backfill_dagster.sandbox.faults import HtmlPage, ServerError, TooManyRequests, Truncate
from backfill_dagster_tests.dids.sources.asking_servers import (
    joined,
    read,
    read_batches,
    study_of_sandbox,
    study_of_server,
)
from backfill_dagster_tests.network.loopback import serve

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from backfill_dagster.sandbox.network import SandboxNetwork
    from backfill_dagster_tests.network.loopback import Handler

LIKE = "app.bsky.feed.like"
LIST_REPOS = "/xrpc/com.atproto.sync.listRepos"
BY_COLLECTION = "/xrpc/com.atproto.sync.listReposByCollection"


def pds_source(*hosts: str) -> PdsEntries:
    origins = tuple(f"http://{host}" for host in hosts)
    return PdsEntries(PdsSource(type="pds", hosts=origins), "backfill.source")


def collection_source(network: SandboxNetwork, collection: str = LIKE) -> CollectionEntries:
    config = CollectionSource(type="collection", collection=collection, relay=network.relay_url)
    return CollectionEntries(config, "backfill.source")


# --- whole lists ---


@pytest.mark.parametrize("page", [1000, 7])
def test_everyone_on_the_given_hosts_is_listed(
    network: SandboxNetwork, tmp_path: Path, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repo_list, "PAGE", page)
    first, second = network.hosts[:2]

    entries = read(pds_source(second, first), study_of_sandbox(tmp_path))

    by_host = {
        host: [
            account.did
            for account in network.population.accounts
            if account.has_repo and host in (account.host, account.former_host)
        ]
        for host in (first, second)
    }
    assert entries == by_host[second] + by_host[first]
    assert min(map(len, by_host.values())) > 7


@pytest.mark.parametrize("page", [1000, 3])
def test_everyone_with_records_of_a_collection_is_listed(
    network: SandboxNetwork, tmp_path: Path, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repo_list, "PAGE", page)
    having = {
        account.did
        for account in network.truth.accounts()
        if any(record.collection == LIKE for record in network.truth.records(account.did))
    }

    entries = read(collection_source(network), study_of_sandbox(tmp_path))

    # The relay also knows active accounts that the directory leads nobody to.
    hidden = {account.did for account in network.truth.accounts() if account.directory_state != "resolved"}
    assert set(entries) - hidden == having
    assert len(entries) == len(set(entries)) > page % 1000


def test_who_writes_into_a_collection_is_listed_from_then_on(network: SandboxNetwork, tmp_path: Path) -> None:
    account = next(found.did for found in network.truth.accounts() if found.is_complete)
    study, source = study_of_sandbox(tmp_path), collection_source(network, "org.example.thing")

    assert read(source, study) == []
    network.edit.create(account, "org.example.thing", {})
    assert read(source, study) == [account]


# --- what goes wrong ---


@pytest.mark.parametrize(
    "fault",
    [ServerError(500), TooManyRequests("official"), TooManyRequests("no_headers"), Truncate(-5), HtmlPage()],
    ids=lambda fault: type(fault).__name__,
)
def test_what_passes_costs_nothing(
    network: SandboxNetwork, tmp_path: Path, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repo_list, "PAGE", 10)
    monkeypatch.setattr("backfill_dagster.network.limits.FIRST_PARK", 1.0)
    host, study = network.hosts[0], study_of_sandbox(tmp_path)
    healthy = read(pds_source(host), study)
    network.faults.set_host(host, fault, every=2, times=1)

    assert read(pds_source(host), study) == healthy


@pytest.mark.parametrize(
    ("fault", "said"),
    [(ServerError(502), "HTTP 502"), (Truncate(-5), "not JSON"), (HtmlPage(), "not JSON")],
    ids=["status", "cut", "html"],
)
def test_a_list_that_cannot_be_had_whole_is_an_error_that_names_the_host(
    network: SandboxNetwork, tmp_path: Path, fault: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repo_list, "PAGE", 5)
    good, bad = network.hosts[:2]
    network.faults.set_host(bad, fault, paths=[LIST_REPOS])

    with pytest.raises(SourceError, match=said) as raised:
        read(pds_source(good, bad), study_of_sandbox(tmp_path))
    assert bad in str(raised.value)
    assert "backfill.source.hosts" in str(raised.value)

    network.faults.set_host("relay.sandbox.test", fault, paths=[BY_COLLECTION])
    with pytest.raises(SourceError, match=said) as raised:
        read(collection_source(network), study_of_sandbox(tmp_path))
    assert "relay.sandbox.test" in str(raised.value)


def test_a_host_that_is_parked_for_too_long_is_an_error(network: SandboxNetwork, tmp_path: Path) -> None:
    host = network.hosts[0]
    network.faults.set_host(host, TooManyRequests(retry_after=600))
    study = study_of_sandbox(tmp_path, network={"max_park_minutes": 0.01})

    with pytest.raises(SourceError, match=host):
        read(pds_source(host), study)


def pages(*answers: Any) -> Handler:
    """Answer with these one after the other, and the last for ever; a cursor says which page is next."""
    numbers = itertools.count()

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(answers[min(next(numbers), len(answers) - 1)])

    return handler


def listed(handler: Handler, folder: Path) -> list[str | None]:
    """Return what a host on loopback lists."""

    async def run() -> list[pl.DataFrame]:
        async with serve(handler) as address:
            return await read_batches(pds_source(address), study_of_server(folder, address))

    return joined(asyncio.run(asyncio.wait_for(run(), 30)))


def test_what_a_host_lists_is_judged_elsewhere(tmp_path: Path) -> None:
    repos = [
        {"did": "did:plc:x"},
        {"did": "../../etc"},
        {"did": 5},
        {},
        "did:web:a.test",
        None,
        {"did": "x" * 9000},
    ]

    entries = listed(pages({"repos": repos, "cursor": ""}), tmp_path)

    assert entries == ["did:plc:x", "../../etc", "5", None, "did:web:a.test", None, "x" * 9000]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"repos": [{"did": "a"}], "cursor": "1"}], "circle"),
        (
            [
                {"repos": [], "cursor": "1"},
                {"repos": [], "cursor": "2"},
                {"repos": [], "cursor": "3"},
                {"repos": [], "cursor": "1"},
            ],
            "circle",
        ),
        ([{"repos": [], "cursor": "1" * 5000}], "cursor"),
        ([{"repos": [], "cursor": 7}], "cursor"),
        ([{"repos": {"did": "a"}}], "no list"),
        ([["did:plc:x"]], "no list"),
        ([{"cursor": "1"}], "no list"),
    ],
)
def test_a_host_cannot_lead_in_a_circle_or_give_something_else(
    tmp_path: Path, answers: list[Any], said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        listed(pages(*answers), tmp_path)


def test_a_host_that_lists_nobody_for_ever_is_left(tmp_path: Path) -> None:
    numbers = itertools.count()

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"repos": [], "cursor": str(next(numbers))})

    with pytest.raises(SourceError, match="100 pages in a row"):
        listed(handler, tmp_path)
    assert next(numbers) == 100


def test_an_error_names_no_account(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"message": "did:plc:abcdefghijklmnopqrstuvwx is gone"}, status=400)

    with pytest.raises(SourceError, match="is gone") as raised:
        listed(handler, tmp_path)
    assert "abcdefghijklmnopqrstuvwx" not in str(raised.value)
