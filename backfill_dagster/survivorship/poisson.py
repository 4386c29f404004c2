"""Rates of events per time, with the exact interval of a Poisson count.

The interval is Garwood's (1936, Biometrika 28), by quantiles of the gamma distribution: for `k` events the bounds of
their expected number are the alpha/2 quantile of Gamma(k) and the 1 - alpha/2 quantile of Gamma(k + 1). Where events
come in bursts (`dispersion` above 1: the variance of their number by its expectation), the count is taken for as many
events less, and the bounds of their number are scaled back: a quasi-Poisson interval, the exact one for dispersion 1.
"""

from __future__ import annotations

import math

_CONFIDENCE = 0.95
_RELATIVE_ERROR = 1e-10
_NOTHING = 1e-200
_MAX_STEPS = 100_000


def poisson_bounds(
    events: float, dispersion: float = 1.0, confidence: float = _CONFIDENCE
) -> tuple[float, float]:
    """Return the bounds of the expected number of events, of which so many were seen."""
    effective, tail = events / dispersion, (1 - confidence) / 2
    low = gamma_quantile(tail, effective) if effective > 0 else 0.0
    return low * dispersion, gamma_quantile(1 - tail, effective + 1) * dispersion


def gamma_quantile(probability: float, shape: float) -> float:
    """Return where the distribution function of Gamma(shape, 1) reaches a probability between 0 and 1."""
    low, high = 0.0, shape + 1.0
    while gamma_cdf(high, shape) < probability:
        low, high = high, 2 * high
    # Of a tiny shape the quantile can be closer to nothing than numbers go.
    while high - low > _RELATIVE_ERROR * high and high > _NOTHING:
        middle = (low + high) / 2
        if gamma_cdf(middle, shape) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def gamma_cdf(value: float, shape: float) -> float:
    """Return the regularised lower incomplete gamma function P(shape, value).

    By its series below the mean, and by Lentz' continued fraction of the rest above it (Press et al., Numerical
    Recipes, 3rd edition, section 6.2).
    """
    if value <= 0:
        return 0.0
    front = math.exp(shape * math.log(value) - value - math.lgamma(shape))
    if value < shape + 1:
        return _series(value, shape) * front
    return 1 - _continued_fraction(value, shape) * front


def _series(value: float, shape: float) -> float:
    term = total = 1 / shape
    for step in range(1, _MAX_STEPS):
        term *= value / (shape + step)
        total += term
        if term < total * 1e-16:
            break
    return total


def _continued_fraction(value: float, shape: float) -> float:
    tiny = 1e-300
    b = value + 1 - shape
    c, d = 1 / tiny, 1 / b
    result = d
    for step in range(1, _MAX_STEPS):
        a = -step * (step - shape)
        b += 2
        d = a * d + b
        d = 1 / (d if abs(d) > tiny else tiny)
        c = b + a / c
        c = c if abs(c) > tiny else tiny
        result *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return result
