from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from backfill_dagster.directory.documents import parse_document
from backfill_dagster.repos.faults import RepoFault
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.verify import verify_repo
from backfill_dagster.sandbox.faults import HostileEndpoint, SilentSinceMigration, StaleDocument
from backfill_dagster.sandbox.population import Role

if TYPE_CHECKING:
    from backfill_dagster.sandbox.network import SandboxNetwork
    from backfill_dagster_tests.sandbox.conftest import Ask

    from .export import Fetch

PLC = "plc.sandbox.test"


def key_in(document: Any) -> str:
    return f"did:key:{document['verificationMethod'][0]['publicKeyMultibase']}"


@pytest.mark.parametrize("role", [Role.UNICODE, Role.MIGRATED])
def test_a_stale_document_becomes_fresh(network: SandboxNetwork, ask: Ask, fetch: Fetch, role: Role) -> None:
    found = fetch(role=role)
    did = found.account.did
    network.faults.set_account(did, StaleDocument(), times=1)
    stale, fresh = ask(PLC, f"/{did}").json, ask(PLC, f"/{did}").json
    assert key_in(stale) != key_in(fresh) == found.account.signing_key
    assert {**stale, "verificationMethod": None} == {**fresh, "verificationMethod": None}
    with pytest.raises(Exception, match=RepoFault.BAD_SIGNATURE):
        verify_repo(found.car, did=did, keys=[SigningKey.from_did_key(key_in(stale))])
    assert found.verify().signed_by == "current"


@pytest.mark.parametrize("role", [Role.UNICODE, Role.MIGRATED])
def test_a_repository_with_its_old_signature(
    network: SandboxNetwork, ask: Ask, fetch: Fetch, role: Role
) -> None:
    healthy, found = fetch(role=role), fetch(SilentSinceMigration(), role=role)
    did = found.account.did
    assert found.verdict() is RepoFault.BAD_SIGNATURE
    assert key_in(ask(PLC, f"/{did}").json) == found.account.signing_key
    log = [entry for entry in ask(PLC, f"/{did}/log/audit").json if not entry["nullified"]]
    keys = [entry["operation"]["verificationMethods"]["atproto"] for entry in log]
    assert keys[-1] == found.account.signing_key
    proven = verify_repo(
        found.car,
        did=did,
        keys=[SigningKey.from_did_key(keys[-1])],
        previous_keys=[SigningKey.from_did_key(key) for key in keys[:-1]],
    )
    assert proven.signed_by == "previous"
    assert [entry["operation"]["prev"] for entry in log] == [None, *(entry["cid"] for entry in log[:-1])]
    assert found.leaves == healthy.leaves


def test_a_hostile_endpoint(network: SandboxNetwork, ask: Ask) -> None:
    for role in (Role.UNICODE, Role.DID_WEB):
        account = next(found for found in network.truth.accounts() if found.role is role)
        is_web = account.did.startswith("did:web:")
        host, path = (account.did[8:], "/.well-known/did.json") if is_web else (PLC, f"/{account.did}")
        for url in ("http://169.254.169.254", "http://10.0.0.1:8080", "http://localhost"):
            network.faults.set_account(account.did, HostileEndpoint(url))
            identity = parse_document(account.did, ask(host, path).body)
            assert identity.pds_origin == url
        network.faults.set_account(account.did)
        assert parse_document(account.did, ask(host, path).body).pds_origin == account.pds
