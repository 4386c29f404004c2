"""What the environment says of the HTTP server: who is let in, how often, with how much, and behind which proxies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Self

from limits import parse

from backfill_dagster.api.environment import number_in, switch_in
from backfill_dagster.api.tokens import TOKENS_VARIABLE, Tokens
from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limits import RateLimitItem

RATE_VARIABLE = "BACKFILL_API_RATE"
FAILED_RATE_VARIABLE = "BACKFILL_API_FAILED_RATE"
MAX_BYTES_VARIABLE = "BACKFILL_API_MAX_BYTES"
PUBLIC_DOCS_VARIABLE = "BACKFILL_API_PUBLIC_DOCS"
PROXIES_VARIABLE = "BACKFILL_API_PROXIES"
_DEFAULT_RATE = "120/minute"
_DEFAULT_FAILED_RATE = "10/minute"
_DEFAULT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Who is let in, and how much."""

    tokens: Tokens
    rate: RateLimitItem
    failed_rate: RateLimitItem
    max_bytes: int
    public_docs: bool
    # Addresses of proxies that are believed whom they speak for.
    proxies: tuple[str, ...]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables; raises ConfigError for one that is wrong, and if nobody would be let in."""
        return cls(
            tokens=Tokens.parse(environ.get(TOKENS_VARIABLE, "")),
            rate=_rate(environ, RATE_VARIABLE, _DEFAULT_RATE),
            failed_rate=_rate(environ, FAILED_RATE_VARIABLE, _DEFAULT_FAILED_RATE),
            max_bytes=int(
                number_in(environ, MAX_BYTES_VARIABLE, default=_DEFAULT_BYTES, least=1024, most=16 * 2**20)
            ),
            public_docs=switch_in(environ, PUBLIC_DOCS_VARIABLE),
            proxies=_proxies(environ.get(PROXIES_VARIABLE, "")),
        )


def _proxies(text: str) -> tuple[str, ...]:
    """Read addresses and networks; `*` would let everybody claim to be somebody else."""
    parts = tuple(part for part in re.split(r"[,\s]+", text) if part)
    for part in parts:
        try:
            ip_network(part)
        except ValueError:
            raise ConfigError(
                f"{PROXIES_VARIABLE} = {text!r}: {part!r} is no address, nor a network such as 10.0.0.0/8"
            ) from None
    return parts


def _rate(environ: Mapping[str, str], name: str, default: str) -> RateLimitItem:
    text = environ.get(name) or default
    try:
        rate = parse(text)
    except ValueError:
        rate = None
    if rate is None or rate.amount < 1:
        raise ConfigError(f"{name} = {text!r}: must be a rate such as {default}, or 5/second")
    return rate
