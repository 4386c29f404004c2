from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backfill_dagster.sandbox.faults import GET_REPO, AccountFault
from backfill_dagster.sandbox.population import Role
from backfill_dagster_tests.sandbox.faults.export import Export, Fetch

if TYPE_CHECKING:
    from backfill_dagster.sandbox.network import SandboxNetwork
    from backfill_dagster_tests.sandbox.conftest import Ask


@pytest.fixture
def fetch(network: SandboxNetwork, ask: Ask) -> Fetch:
    """Fetch the repository of the first account of a role, with these faults."""

    def send(*faults: AccountFault, role: Role = Role.UNICODE) -> Export:
        account = next(found for found in network.truth.accounts() if found.role is role)
        assert account.pds is not None
        network.faults.set_account(account.did, *faults)
        reply = ask(account.pds.removeprefix("http://"), f"{GET_REPO}?did={account.did}")
        assert reply.status == 200
        return Export(account, reply.body)

    return send
