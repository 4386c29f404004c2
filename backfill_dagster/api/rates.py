"""How often: requests of one token, and failed tries of one address."""

from __future__ import annotations

import time
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

if TYPE_CHECKING:
    from limits import RateLimitItem

_FAILED, _TOKEN = "failed", "token"
# Whoever has one IPv6 address has as a rule all of its /64.
_IPV6_HOST_BITS = 64


class Rates:
    """Counts in the memory of this process, of which there is one."""

    def __init__(self, per_token: RateLimitItem, per_address_failed: RateLimitItem) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._per_token = per_token
        self._failed = per_address_failed

    def take(self, token_name: str) -> float | None:
        """Count a request of a token; return None if it may be made, or in how many seconds one may."""
        if self._limiter.hit(self._per_token, _TOKEN, token_name):
            return None
        return self._wait(self._per_token, _TOKEN, token_name)

    def blocked(self, address: str) -> float | None:
        """Return in how many seconds an address may try again after too many failed tries; None if it may now."""
        network = _network(address)
        if self._limiter.test(self._failed, _FAILED, network):
            return None
        return self._wait(self._failed, _FAILED, network)

    def failed(self, address: str) -> None:
        """Count a failed try of an address."""
        self._limiter.hit(self._failed, _FAILED, _network(address))

    def _wait(self, item: RateLimitItem, *who: str) -> float:
        return max(1.0, self._limiter.get_window_stats(item, *who).reset_time - time.time())


def _network(address: str) -> str:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(int(parsed) >> _IPV6_HOST_BITS)
    return str(parsed)
