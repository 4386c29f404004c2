"""The members of lists and starter packs: read from the proven repository of their owner, and refused otherwise."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from backfill_dagster.config.sources import ListSource
from backfill_dagster.dids.sources.bluesky_list import ListEntries
from backfill_dagster.errors import SourceError
from backfill_dagster.sandbox.faults import (
    GET_REPO,
    BadSignature,
    ChangedDuringExport,
    CutAtBlock,
    MissingBlock,
    ServerError,
    Truncate,
    WrongDid,
)
from backfill_dagster.sandbox.population import Role
from backfill_dagster_tests.dids.sources.asking_servers import read, study_of_sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster.sandbox.network import SandboxNetwork

LIST = "app.bsky.graph.list"
ITEM = "app.bsky.graph.listitem"
PACK = "app.bsky.graph.starterpack"


def of_role(network: SandboxNetwork, role: Role = Role.NORMAL, number: int = 0) -> str:
    return [found.did for found in network.truth.accounts() if found.role is role][number]


def source(uri: str) -> ListEntries:
    return ListEntries(ListSource(type="list", uri=uri), "backfill.source")


def members(network: SandboxNetwork, count: int = 5) -> list[str]:
    return list(reversed(network.dids[10 : 10 + count]))


def test_the_members_of_a_list_in_the_order_of_their_keys(network: SandboxNetwork, tmp_path: Path) -> None:
    owner, study = of_role(network), study_of_sandbox(tmp_path)
    uri = network.edit.create_list(owner, "one", members(network))
    network.edit.create_list(owner, "another", network.dids[20:25])
    network.edit.create(owner, ITEM, {"subject": network.dids[30], "list": uri}, rkey="0first")

    assert read(source(uri), study) == [network.dids[30], *members(network)]

    item = network.truth.records(owner)
    [last] = [
        record.rkey
        for record in item
        if record.collection == ITEM
        and record.value is not None
        and record.value["subject"] == members(network)[-1]
        and record.value["list"] == uri
    ]
    network.edit.delete(owner, ITEM, last)
    assert read(source(uri), study) == [network.dids[30], *members(network)[:-1]]


@pytest.mark.parametrize("role", [Role.NORMAL, Role.DID_WEB, Role.ODD_KEYS, Role.INVALID_UTF8, Role.MIGRATED])
def test_whoever_owns_it(network: SandboxNetwork, tmp_path: Path, role: Role) -> None:
    uri = network.edit.create_list(of_role(network, role), "list", members(network))

    assert read(source(uri), study_of_sandbox(tmp_path)) == members(network)


def test_a_starter_pack_has_the_members_of_its_list(network: SandboxNetwork, tmp_path: Path) -> None:
    owner, other = of_role(network), of_role(network, number=1)
    own = network.edit.create_list(owner, "own", members(network))
    foreign = network.edit.create_list(other, "foreign", network.dids[:2])
    study = study_of_sandbox(tmp_path)

    network.requests.clear()
    assert read(source(network.edit.create_starter_pack(owner, "a", own)), study) == members(network)
    assert network.requests.count(path=GET_REPO) == 1
    assert read(source(network.edit.create_starter_pack(owner, "b", foreign)), study) == network.dids[:2]


def test_a_list_of_nobody_and_entries_that_are_odd(network: SandboxNetwork, tmp_path: Path) -> None:
    owner, study = of_role(network), study_of_sandbox(tmp_path)
    uri = network.edit.create_list(owner, "empty", [])
    assert read(source(uri), study) == []

    for subject in ("did:plc:x", 5, None, ["did:plc:y"], network.dids[0]):
        network.edit.create(owner, ITEM, {"subject": subject, "list": uri})
    network.edit.create(owner, ITEM, {"subject": network.dids[1], "list": [uri]})
    network.edit.create(owner, ITEM, {"subject": network.dids[2]})
    assert read(source(uri), study) == ["did:plc:x", "5", None, '["did:plc:y"]', network.dids[0]]


def test_an_old_signature_of_an_owner_who_moved_holds(network: SandboxNetwork, tmp_path: Path) -> None:
    owner = of_role(network)
    uri = network.edit.create_list(owner, "list", members(network))
    network.edit.migrate(
        owner, next(host for host in network.hosts if f"http://{host}" != network.truth.account(owner).pds)
    )

    assert network.truth.account(owner).signed_by == "previous"
    assert read(source(uri), study_of_sandbox(tmp_path)) == members(network)


# --- what goes wrong ---


@pytest.mark.parametrize(
    "fault", [ServerError(500), Truncate(-50), CutAtBlock(), ChangedDuringExport(), MissingBlock()]
)
def test_what_passes_costs_nothing(network: SandboxNetwork, tmp_path: Path, fault: Any) -> None:
    owner = of_role(network)
    uri = network.edit.create_list(owner, "list", members(network))
    network.faults.set_account(owner, fault, times=1)

    assert read(source(uri), study_of_sandbox(tmp_path)) == members(network)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ServerError(500), "server_error"),
        (Truncate(-50), "truncated"),
        (MissingBlock(), "changed_during_export"),
        (BadSignature(), "bad_signature"),
        (WrongDid(), "wrong_did"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_repository_that_does_not_hold_gives_no_members(
    network: SandboxNetwork, tmp_path: Path, fault: Any, said: str
) -> None:
    owner = of_role(network)
    uri = network.edit.create_list(owner, "list", members(network))
    network.faults.set_account(owner, fault)

    refused(uri, tmp_path, said)


@pytest.mark.parametrize(
    ("role", "said"),
    [
        (Role.DEACTIVATED, "says of the owner's repository: deactivated"),
        (Role.TAKENDOWN, "says of the owner's repository: takendown"),
        (Role.NOT_FOUND, "says of the owner's repository: not_found"),
        (Role.TOMBSTONED, "cannot be looked up: tombstoned"),
        (Role.UNKNOWN_TO_PLC, "cannot be looked up: not_found"),
        (Role.DID_WEB_GONE, "cannot be looked up: not_found"),
        (Role.DOCUMENT_WITHOUT_PDS, "cannot be looked up: no_pds"),
        (Role.EMPTY, "has no such list"),
        (Role.NORMAL, "has no such list"),
    ],
)
def test_an_owner_without_the_list(network: SandboxNetwork, tmp_path: Path, role: Role, said: str) -> None:
    refused(f"at://{of_role(network, role)}/{LIST}/nothing", tmp_path, said)


@pytest.mark.parametrize(
    "named",
    [
        None,
        5,
        "at://did:plc:x",
        "at://not-a-did/app.bsky.graph.list/x",
        f"at://did:web:a.test/{PACK}/x",
        "at://../../x",
    ],
)
def test_a_starter_pack_without_a_list(network: SandboxNetwork, tmp_path: Path, named: Any) -> None:
    owner = of_role(network)
    rkey = network.edit.create(owner, PACK, {"name": "odd", "list": named})

    refused(f"at://{owner}/{PACK}/{rkey}", tmp_path, "names no list")
    refused(f"at://{owner}/{PACK}/other", tmp_path, "no such starter pack")


def refused(uri: str, folder: Path, said: str) -> None:
    """See that there is an error, which says why and names nobody."""
    with pytest.raises(SourceError, match=re.escape(said)) as raised:
        read(source(uri), study_of_sandbox(folder))
    assert str(raised.value).startswith("backfill.source.uri: ")
    assert "did:" not in str(raised.value)
