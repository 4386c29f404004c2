import random

from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.network.backoff import MAX_BACKOFF, full_jitter


@settings(deadline=None)
@given(st.integers(-5, 10_000), st.floats(0.001, 60), st.randoms(use_true_random=False))
def test_a_wait_lies_between_nothing_and_the_cap(attempt: int, base: float, source: random.Random) -> None:
    assert 0 <= full_jitter(attempt, base, source.random) <= MAX_BACKOFF


@settings(deadline=None)
@given(st.integers(1, 5), st.floats(0.001, 0.5))
def test_the_bound_doubles_with_each_failure(attempt: int, base: float) -> None:
    assert full_jitter(attempt + 1, base, lambda: 1.0) == 2 * full_jitter(attempt, base, lambda: 1.0)


def test_the_first_wait_is_the_base_on_average() -> None:
    source = random.Random(1)
    waits = [full_jitter(1, 0.5, source.random) for _ in range(20_000)]

    assert abs(sum(waits) / len(waits) - 0.5) < 0.01


def test_the_same_seed_gives_the_same_waits() -> None:
    first, second = random.Random(7), random.Random(7)

    assert [full_jitter(n, 1, first.random) for n in range(9)] == [
        full_jitter(n, 1, second.random) for n in range(9)
    ]
