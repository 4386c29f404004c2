from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backfill_dagster.sandbox.faults import BadSignature, HighSignature, OversizeCommit, WrongDid
from backfill_dagster.sandbox.keys import Curve
from backfill_dagster.sandbox.population import Role

if TYPE_CHECKING:
    from backfill_dagster.sandbox.network import SandboxNetwork

    from .export import Fetch


def test_another_accounts_commit_is_signed_with_this_ones_key(fetch: Fetch) -> None:
    found = fetch(WrongDid())
    assert found.commit["did"] != found.account.did
    assert found.is_signed()


def test_bad_signatures(fetch: Fetch) -> None:
    healthy = fetch()
    for style, size in (("other_key", 64), ("zeros", 64), ("short", 63)):
        found = fetch(BadSignature(style))  # type: ignore[arg-type]
        assert len(found.commit["sig"]) == size
        assert not found.is_signed()
        assert {**found.commit, "sig": None} == {**healthy.commit, "sig": None}


@pytest.mark.parametrize("curve", Curve)
def test_the_high_twin_of_the_signature(fetch: Fetch, network: SandboxNetwork, curve: Curve) -> None:
    role = next(
        account.role
        for account in network.population.accounts
        if account.curve is curve and account.role in (Role.UNICODE, Role.FLOATS, Role.EMPTY, Role.ODD_DATES)
    )
    low, high = fetch(role=role).commit["sig"], fetch(HighSignature(), role=role).commit["sig"]
    assert low[:32] == high[:32]
    assert int.from_bytes(low[32:]) + int.from_bytes(high[32:]) == curve.value
    assert int.from_bytes(high[32:]) > curve.value // 2


def test_a_large_commit_is_signed(fetch: Fetch) -> None:
    found = fetch(OversizeCommit(50_000))
    assert len(found.blocks[found.roots[0]]) > 50_000
    assert found.is_signed()
