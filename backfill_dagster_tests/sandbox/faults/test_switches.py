from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import TYPE_CHECKING

import pytest

from backfill_dagster.sandbox import faults
from backfill_dagster.sandbox.answer import GET_REPO
from backfill_dagster.sandbox.faults import (
    DuplicateBlocks,
    Faults,
    HostDown,
    MissingBlock,
    ServerError,
    StaleDocument,
    TooManyRequests,
    WrongDid,
)
from backfill_dagster.sandbox.faults.distortion import Distortion
from backfill_dagster.sandbox.faults.pretences import Pretence

from .export import Export, Fetch

if TYPE_CHECKING:
    from backfill_dagster.sandbox.network import SandboxNetwork
    from backfill_dagster_tests.sandbox.conftest import Ask


def test_the_closed_set_holds_every_fault_there_is() -> None:
    defined = {
        found
        for module in pkgutil.iter_modules(faults.__path__)
        for found in vars(importlib.import_module(f"{faults.__name__}.{module.name}")).values()
        if inspect.isclass(found) and (issubclass(found, Distortion | Pretence) or hasattr(found, "change"))
    }
    concrete = {found for found in defined if is_dataclass(found)}
    assert concrete == Faults.kinds
    families = (Faults.http_kinds, Faults.structural_kinds, Faults.pretence_kinds)
    assert sum(len(family) for family in families) == len(Faults.kinds)
    assert all(getattr(faults, kind.__name__) is kind for kind in Faults.kinds)
    assert all(kind.__doc__ for kind in Faults.kinds)


@pytest.mark.parametrize("kind", sorted(Faults.kinds, key=str))
def test_a_fault_is_a_value(kind: type) -> None:
    made = kind(1) if kind.__name__ == "Truncate" else kind()
    assert made == (kind(1) if kind.__name__ == "Truncate" else kind())
    assert len({made, made}) == 1
    for field in fields(made):
        with pytest.raises(FrozenInstanceError):
            setattr(made, field.name, None)


def test_a_fault_may_meet_every_nth_request(network: SandboxNetwork, ask: Ask) -> None:
    host = network.hosts[0]
    network.faults.set_host(host, TooManyRequests(), every=3)
    asked = [ask(host, "/xrpc/_health").status for _ in range(9)]
    assert asked == [200, 200, 429] * 3
    network.faults.set_host(host, TooManyRequests(), every=2, times=2)
    asked = [ask(host, "/xrpc/_health").status for _ in range(8)]
    assert asked == [200, 429, 200, 429, 200, 200, 200, 200]
    assert ask(network.hosts[1], "/xrpc/_health").status == 200


def test_structural_faults_of_a_host_meet_all_its_accounts(
    network: SandboxNetwork, ask: Ask, fetch: Fetch
) -> None:
    healthy = fetch()
    host = str(healthy.account.pds).removeprefix("http://")
    network.faults.set_host(host, WrongDid(), HostDown())
    network.faults.set_host(host, WrongDid())
    here = [
        found for found in network.truth.accounts() if found.pds == healthy.account.pds and found.is_complete
    ]
    assert len(here) > 3
    for account in here:
        body = ask(host, f"{GET_REPO}?did={account.did}").body
        assert Export(account, body).commit["did"] == WrongDid().did
    elsewhere = next(
        found for found in network.truth.accounts() if found.is_complete and found.pds != healthy.account.pds
    )
    body = ask(str(elsewhere.pds)[7:], f"{GET_REPO}?did={elsewhere.did}").body
    assert Export(elsewhere, body).commit["did"] == elsewhere.did


def test_each_family_counts_its_own_requests(network: SandboxNetwork, ask: Ask, fetch: Fetch) -> None:
    healthy = fetch()
    did, host = healthy.account.did, str(healthy.account.pds).removeprefix("http://")
    path = f"{GET_REPO}?did={did}"
    network.faults.set_account(did, MissingBlock(), StaleDocument(), times=1)
    # What the faults are not about does not count.
    ask(host, f"/xrpc/com.atproto.sync.getLatestCommit?did={did}")
    ask("plc.sandbox.test", f"/{did}/log/audit")
    documents = [ask("plc.sandbox.test", f"/{did}").body for _ in range(3)]
    assert documents[0] != documents[1] == documents[2]
    exports = [ask(host, path).body for _ in range(3)]
    assert len(exports[0]) < len(exports[1])
    assert exports[1:] == [healthy.car] * 2


def test_a_fault_of_the_way_comes_on_top_of_one_of_the_export(
    network: SandboxNetwork, ask: Ask, fetch: Fetch
) -> None:
    healthy = fetch()
    did, host = healthy.account.did, str(healthy.account.pds).removeprefix("http://")
    network.faults.set_account(did, DuplicateBlocks(), ServerError(500), every=2)
    replies = [ask(host, f"{GET_REPO}?did={did}") for _ in range(4)]
    assert [reply.status for reply in replies] == [200, 500, 200, 500]
    assert replies[0].body == replies[2].body == healthy.car


def test_what_the_account_shows_elsewhere_stays_true(network: SandboxNetwork, ask: Ask, fetch: Fetch) -> None:
    found = fetch(WrongDid())
    host = str(found.account.pds).removeprefix("http://")
    told = ask(host, f"/xrpc/com.atproto.sync.getLatestCommit?did={found.account.did}").json
    assert told == {"cid": network.truth.commit_cid(found.account.did), "rev": found.account.repo_rev}
    assert network.truth.account(found.account.did) == found.account
