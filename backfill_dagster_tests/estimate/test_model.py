import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.config.network import Network
from backfill_dagster.config.processing import Processing
from backfill_dagster.estimate.figures import Figures, Prices, Skew
from backfill_dagster.estimate.model import Estimate, Frame, estimate

FIGURES, PRICES, NETWORK = Figures(), Prices(), Network()


def told(hosts: list[int], records: float = 100, size: float = 50_000, **processing: object) -> Estimate:
    settings = Processing.model_validate({"workers": 2, "requests_per_second": 10, **processing})
    return estimate(Frame(hosts, records, size), settings, NETWORK, FIGURES, PRICES)


def test_a_host_s_rate_bounds_small_repositories() -> None:
    found = told([6000], size=1000, requests_in_flight=50)
    assert found.slowest_host_seconds == found.fetch_seconds == 600
    assert found.fetch_requests == found.directory_requests == found.accounts == 6000


def test_answers_under_way_bound_slow_ones_and_the_line_large_ones() -> None:
    slow = told([1000], size=1000, requests_in_flight=1)
    assert slow.fetch_seconds == pytest.approx(1000 * (0.3 + 1000 / 4e6))
    large = told([1000], size=40e6, requests_in_flight=50)
    assert large.fetch_seconds == pytest.approx(1000 * 10)


def test_hosts_are_asked_side_by_side_and_the_longest_decides() -> None:
    alone = told([9000], size=1000).fetch_seconds
    assert told([9000] + [10] * 30, size=1000).fetch_seconds == alone
    assert told([9000] * 4, size=1000, max_concurrent_pds=2).fetch_seconds == 2 * alone
    assert told([9000] * 4, size=1000, max_concurrent_pds=4).fetch_seconds == alone


def test_the_processor_is_what_was_measured() -> None:
    found = told([1000], records=1000, size=400_000)
    million = 5.4 + 8.1 + 7.3 + 3.4 + 0.9
    # Looked up, fetched, proven, converted, put into tables and accounted for.
    thousand, line = 0.7 + 1.2 + 0.4 + 0.65 + 0.13 + 0.24, 4e8 * 1.33e-9
    assert found.cpu_seconds == pytest.approx(million + thousand + line + 0.09 + 3)
    assert found.bytes_stored == pytest.approx(4e8 * 1.8)
    assert found.peak_memory == 390e6 + 1000 * 350 + 2 * 400e6


def test_what_one_process_does_takes_as_long_however_many_workers_there_are() -> None:
    def fetched(workers: int, records: float) -> float:
        hosts, fast = [100] * 1000, {"requests_per_second": 1000, "requests_in_flight": 50}
        settings = {**fast, "max_concurrent_pds": 1000, "workers": workers}
        return told(hosts, records, 1000, **settings).fetch_seconds

    # A hundred thousand requests, and what comes with them, by the one that asks.
    assert fetched(64, 1) == pytest.approx(100_000 * (1.2e-3 + 1000 * 1.33e-9))
    assert fetched(1, 1000) == pytest.approx(2 * fetched(2, 1000))
    assert fetched(64, 1000) == fetched(256, 1000) == fetched(64, 1)


def test_many_accounts_are_looked_up_in_the_directory_s_export() -> None:
    at_least = NETWORK.plc_export.at_least
    assert told([at_least - 1]).directory_requests == at_least - 1
    assert told([at_least]).directory_requests == 80_000


def test_nobody_costs_nothing_but_the_start() -> None:
    found = told([])
    assert (found.accounts, found.records, found.fetch_seconds, found.directory_requests) == (0, 0, 0, 0)
    assert found.storage_request_dollars == 0


@given(st.integers(1, 1_000_000))
def test_the_assumed_hosts_have_all_accounts(accounts: int) -> None:
    hosts = Skew().spread(accounts)
    assert sum(hosts) == accounts
    assert hosts == sorted(hosts, reverse=True)
    assert min(hosts) > 0
    assert len(hosts) <= 340


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.integers(0, 49))
def test_more_accounts_never_cost_less(hosts: list[int], more: int) -> None:
    larger = [*hosts]
    larger[more % len(hosts)] += 100
    before, after = told(hosts), told(larger)
    for name in ("seconds", "cpu_seconds", "bytes_stored", "machine_dollars", "storage_request_dollars"):
        assert getattr(after, name) >= getattr(before, name)
