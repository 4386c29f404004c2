"""Asks DNS for the texts that stand under a name, of the system's server or of one that the study names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.asyncresolver
import dns.exception
import dns.resolver

from backfill_dagster.errors import BackfillError

if TYPE_CHECKING:
    from dns.rdtypes.txtbase import TXTBase

# Records under one name that are looked at; who has more has them for something else.
_MAX_RECORDS = 100


class DnsUnreachableError(BackfillError):
    """No server gave an answer, be it that there is nothing."""


class TxtLookup:
    """Looks TXT records up; `server` is `address:port`, `timeout` in seconds bounds a lookup with all its tries."""

    def __init__(self, server: str | None, timeout: float) -> None:
        self._server = server
        self._timeout = timeout
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def texts(self, name: str) -> list[str]:
        """Return the texts of a name, whose pieces are put together (RFC 7208, section 3.3); none if it has none.

        Raises DnsUnreachableError.
        """
        try:
            if self._resolver is None:
                self._resolver = _resolver(self._server)
            answer = await self._resolver.resolve(
                f"{name}.", "TXT", lifetime=self._timeout, raise_on_no_answer=False
            )
        except (
            dns.resolver.NoNameservers,
            dns.resolver.NoResolverConfiguration,
            dns.exception.Timeout,
        ) as error:
            raise DnsUnreachableError(f"{name}: {' '.join(str(error).split())[:300]}") from error
        except OSError as error:
            raise DnsUnreachableError(f"{name}: {error}") from error
        except dns.exception.DNSException:
            # There is no such name, or none so long.
            return []
        records: list[TXTBase] = list(answer.rrset or ())[:_MAX_RECORDS]
        return [b"".join(record.strings).decode("utf-8", "replace") for record in records]


def _resolver(server: str | None) -> dns.asyncresolver.Resolver:
    if server is None:
        return dns.asyncresolver.Resolver()
    address, _, port = server.rpartition(":")
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [address.removeprefix("[").removesuffix("]")]
    resolver.port = int(port)
    return resolver
