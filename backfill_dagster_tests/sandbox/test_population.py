from __future__ import annotations

import re
import statistics
from collections import Counter

import pytest

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.population import Population, Role
from backfill_dagster_tests.conftest import ROOT

DID = re.compile(r"did:plc:[a-z2-7]{24}|did:web:[a-z0-9]+\.sandbox\.test")


@pytest.mark.parametrize("seed", [0, 1, 99])
@pytest.mark.parametrize(("accounts", "hosts"), [(30, 1), (60, 5), (61, 2), (500, 40)])
def test_every_role_exists_and_every_account_is_one(seed: int, accounts: int, hosts: int) -> None:
    population = Population(SandboxSettings(seed=seed, accounts=accounts, hosts=hosts))
    assert len(population.by_did) == len(population.accounts) == accounts
    assert {account.role for account in population.accounts} == set(Role)
    assert {account.host for account in population.accounts} <= set(population.hosts)
    assert len({account.handle for account in population.accounts}) == accounts
    for account in population.accounts:
        assert DID.fullmatch(account.did)
        assert account.former_host != account.host


def test_hosts_are_of_unequal_size() -> None:
    accounts = Population(SandboxSettings(accounts=2000, hosts=12)).accounts
    counts = Counter(account.host for account in accounts)
    assert counts["pds1.sandbox.test"] == pytest.approx(800, abs=2)
    assert 3 <= counts["pds12.sandbox.test"] <= 50
    assert counts["pds2.sandbox.test"] > counts["pds6.sandbox.test"] > counts["pds12.sandbox.test"]


def test_sizes_are_log_normal_around_the_median() -> None:
    sizes = [account.size for account in Population(SandboxSettings(accounts=5000, records=200)).accounts]
    assert statistics.median(sizes) == pytest.approx(200, rel=0.1)
    assert statistics.mean(sizes) == pytest.approx(200 * 1.65, rel=0.15)
    assert max(sizes) <= 200 * 40


def test_a_seed_is_another_network() -> None:
    one, other = (Population(SandboxSettings(seed=seed)) for seed in (1, 2))
    assert not set(one.by_did) & {did for did in other.by_did if did.startswith("did:plc:")}
    assert one.accounts == Population(SandboxSettings(seed=1)).accounts


def test_curves_are_mixed() -> None:
    curves = Counter(account.curve.name for account in Population(SandboxSettings()).accounts)
    assert set(curves) == {"K256", "P256"}
    assert min(curves.values()) >= 5


def test_a_large_population_is_mostly_normal() -> None:
    population = Population(SandboxSettings(accounts=20_000, hosts=340))
    assert sum(account.role is Role.NORMAL for account in population.accounts) > 18_000


def test_the_demos_list_is_the_default_population_with_two_flaws() -> None:
    dids = list(Population(SandboxSettings()).by_did)
    lines = (ROOT / "configs/demo_dids.txt").read_text().splitlines()
    assert [line[:1] for line in lines[:2]] == ["#", "#"]
    assert lines[2:-2] == dids
    malformed, duplicate = lines[-2:]
    assert not DID.fullmatch(malformed)
    assert duplicate in dids
