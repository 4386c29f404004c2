"""How long to wait before a failed request is tried again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BACKOFF = 60.0


def full_jitter(attempt: int, base: float, random: Callable[[], float], cap: float = MAX_BACKOFF) -> float:
    """Return the seconds to wait after the `attempt`-th failure, counted from 1.

    Anything between 0 and a bound that doubles with each failure, so that clients that failed together do not
    come back together; `base` is the first wait's mean, `cap` the bound of all. `random` gives numbers from 0
    to 1, for which a seeded `random.Random(...).random` does. Source: AWS Architecture Blog, "Exponential
    Backoff And Jitter".
    """
    # Beyond 2^63 the cap has long been reached, and a float would overflow.
    doublings = min(max(attempt, 1), 64)
    return random() * min(cap, base * 2.0**doublings)
