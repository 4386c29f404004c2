"""Every fault that the sandbox knows, against what becomes of the account; and all healthy accounts around it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.repos.outcomes import failure_of
from backfill_dagster.sandbox import faults
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster.sandbox.population import Role
from backfill_dagster.tables.accounts import unreconciled
from backfill_dagster_tests.sandbox.faults.test_distortion import CASES
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=9, accounts=400, hosts=4, records=20)
COMPLETE = ("complete", None)

# Fault of one account, how it is switched, and what the account must end as: its state, and why.
STRUCTURAL: list[tuple[Any, dict[str, Any], tuple[str, str | None]]] = [
    (fault, {}, COMPLETE if verdict is None else ("failed", failure_of(verdict).value))
    for fault, verdict in CASES
]
PASSING: list[tuple[Any, dict[str, Any], tuple[str, str | None]]] = [
    (faults.ChangedDuringExport(), {"times": 1}, COMPLETE),
    (faults.MissingBlock("node"), {"times": 1}, COMPLETE),
    (faults.BadSignature("zeros"), {"times": 1}, COMPLETE),
    (faults.ServerError(500), {"times": 1}, COMPLETE),
    (faults.ResetMidBody(), {"times": 1}, COMPLETE),
    (faults.Truncate(100), {"times": 1}, COMPLETE),
    (faults.StaleDocument(), {"times": 1}, COMPLETE),
    (faults.SilentSinceMigration(), {}, COMPLETE),
    (faults.WrongContentType(), {}, COMPLETE),
    (faults.TooManyRequests(retry_after=1), {"times": 1}, COMPLETE),
    *((faults.HostileRateLimits(kind), {}, COMPLETE) for kind in ("past", "zero", "negative", "words")),
]
HTTP: list[tuple[Any, dict[str, Any], tuple[str, str | None]]] = [
    (faults.ServerError(503), {}, ("failed", "server_error")),
    (faults.ResetMidBody(), {}, ("failed", "truncated")),
    (faults.Truncate(100), {}, ("failed", "truncated")),
    (faults.Stall(100), {}, ("failed", "timed_out")),
    (faults.SlowDrip(5), {}, ("failed", "timed_out")),
    (faults.EndlessBody(), {}, ("failed", "too_large")),
    (faults.GzipBomb(64), {}, ("failed", "too_large")),
    (faults.EmptyBody(), {}, ("failed", "empty_body")),
    (faults.HtmlPage(), {}, ("failed", "not_a_car")),
    (faults.WrongEncoding("br"), {}, ("failed", "bad_encoding")),
    (faults.WrongEncoding(), {}, ("failed", "bad_encoding")),
    (faults.RedirectLoop(), {}, ("failed", "bad_redirect")),
    (faults.RedirectTo(), {}, ("failed", "refused_address")),
    (faults.HostileEndpoint(), {}, ("failed", "refused_address")),
]
MATRIX = [*STRUCTURAL, *PASSING, *HTTP]
# Faults of a whole host, which other tests are about.
OF_HOSTS = {faults.HostDown}


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[SandboxNetwork, dict[str, int], pl.DataFrame]]:
    network = sandbox(SETTINGS)
    healthy = [a for a in network.truth.accounts() if a.role is Role.NORMAL and a.is_complete]
    struck = {account.did: number for number, account in enumerate(healthy[: len(MATRIX)])}
    assert len(struck) == len(MATRIX)
    try:
        for did, number in struck.items():
            fault, how, _ = MATRIX[number]
            network.faults.set_account(did, fault, **how)
        study = sandbox_study(
            tmp_path_factory.mktemp("matrix"),
            settings=SETTINGS,
            processing={"requests_per_second": 500, "workers": 2, "max_retries": 1, "requests_in_flight": 8},
            network={"max_repo_megabytes": 20, "read_timeout_seconds": 2, "repo_timeout_seconds": 8},
            time_range={"outside": "drop", "start_date": "2024-09-27", "end_date": "2024-12-02"},
        )
        pipeline.collect_source(study)
        pipeline.resolve_accounts(study)
        pipeline.fetch_repos(study)
        pipeline.convert_records(study)
        yield network, struck, pipeline.build_tables(study)
    finally:
        network.faults.clear()


def test_every_kind_of_fault_is_in_the_matrix() -> None:
    assert {type(fault) for fault, _, _ in MATRIX} | OF_HOSTS == faults.Faults.kinds


def test_each_fault_costs_its_account_what_it_must_and_no_more(
    outcomes: tuple[SandboxNetwork, dict[str, int], pl.DataFrame],
) -> None:
    _, struck, accounts = outcomes
    found = {
        did: (state, reason) for did, state, reason in accounts.select("did", "state", "reason").iter_rows()
    }
    wrong = {
        str(MATRIX[number][:2]): (found[did], MATRIX[number][2])
        for did, number in struck.items()
        if found[did] != MATRIX[number][2]
    }
    assert wrong == {}


def test_all_healthy_accounts_around_them_are_complete_and_correct(
    outcomes: tuple[SandboxNetwork, dict[str, int], pl.DataFrame],
) -> None:
    network, struck, accounts = outcomes
    found = {row["did"]: row for row in accounts.iter_rows(named=True)}
    around = [account for account in network.truth.accounts() if account.did not in struck]
    assert len(around) > 250
    for truth in around:
        if truth.outcome is not None:
            assert found[truth.did]["state"] == truth.outcome
        assert found[truth.did]["records_fetched"] == len(network.truth.records(truth.did))
    assert unreconciled(accounts).is_empty()


def test_a_signature_of_an_earlier_key_is_told_from_a_forged_one(
    outcomes: tuple[SandboxNetwork, dict[str, int], pl.DataFrame],
) -> None:
    _, struck, accounts = outcomes
    silent = [
        did for did, number in struck.items() if isinstance(MATRIX[number][0], faults.SilentSinceMigration)
    ]
    assert accounts.filter(pl.col("did").is_in(silent))["signed_by"].to_list() == ["previous"]


def test_nothing_is_left_over(
    outcomes: tuple[SandboxNetwork, dict[str, int], pl.DataFrame], tmp_path: Path
) -> None:
    del outcomes
    for folder in tmp_path.parent.glob("matrix*/data/study/.scratch"):
        assert list(folder.iterdir()) == []
