"""The exact interval, held against the Poisson distribution itself, summed up term by term."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.survivorship.poisson import gamma_cdf, poisson_bounds


def at_most(events: int, expected: float) -> float:
    """Return the probability of so many events or fewer."""
    return sum(
        math.exp(number * math.log(expected) - expected - math.lgamma(number + 1))
        for number in range(events + 1)
    )


@given(st.integers(0, 400), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=40)
def test_each_bound_leaves_half_of_the_rest_outside(events: int, confidence: float) -> None:
    low, high = poisson_bounds(events, confidence=confidence)
    tail = (1 - confidence) / 2
    assert at_most(events, high) == pytest.approx(tail, rel=1e-6)
    if events:
        assert 1 - at_most(events - 1, low) == pytest.approx(tail, rel=1e-6)
    else:
        assert low == 0


# Garwood (1936), table of 95 % limits.
@pytest.mark.parametrize(
    ("events", "low", "high"),
    [(0, 0, 3.689), (1, 0.0253, 5.572), (5, 1.623, 11.668), (10, 4.795, 18.390), (100, 81.364, 121.627)],
)
def test_it_is_that_of_the_published_table(events: int, low: float, high: float) -> None:
    assert poisson_bounds(events) == pytest.approx((low, high), abs=6e-4)


@given(st.integers(1, 5_000), st.floats(1, 50))
@settings(max_examples=40)
def test_bursts_widen_it_and_a_large_count_narrows_it(events: int, dispersion: float) -> None:
    low, high = poisson_bounds(events)
    wide_low, wide_high = poisson_bounds(events, dispersion)
    assert wide_low <= low * (1 + 1e-9)
    assert wide_high >= high * (1 - 1e-9)
    assert low < events < high
    # As a normal distribution with this variance has it, up to the skewness.
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(events), abs=1.8)


def test_few_events_in_large_bursts_end_at_nothing() -> None:
    low, high = poisson_bounds(1, dispersion=5000)
    assert 0 <= low < 1e-100
    assert 5000 < high < 25_000


@given(st.floats(0.01, 1e5), st.floats(0.01, 10))
def test_the_two_ways_to_the_distribution_meet(shape: float, factor: float) -> None:
    below, above = gamma_cdf(shape * factor, shape), gamma_cdf(shape * factor * (1 + 1e-9), shape)
    assert 0 <= below <= above + 1e-9 <= 1 + 1e-8
    assert gamma_cdf(shape + 1 - 1e-9, shape) == pytest.approx(gamma_cdf(shape + 1 + 1e-9, shape), abs=1e-7)
