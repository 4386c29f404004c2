"""Which hosts and addresses may be talked to.

Endpoints come from DID documents, which their accounts' owners write: an endpoint can name a service inside
the network this runs in. So the address that a name resolves to is judged each time that a connection is
opened, and a URL that holds an address instead of a name is judged before each request and redirect.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias

import httpx
from aiohttp.abc import AbstractResolver, ResolveResult

from backfill_dagster.errors import BackfillError, ConfigError

# IANA IPv4 special-purpose registry, multicast and class E; 168.63.129.16 is the metadata service of Azure.
# Written out, because `ipaddress.is_global` differs between patch releases of Python.
_REFUSED_V4 = tuple(
    ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
    )
)
# Public IPv6 is 2000::/3 without these: protocol assignments (Teredo among them), documentation, 6to4.
_PUBLIC_V6 = ip_network("2000::/3")
_REFUSED_V6 = tuple(ip_network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
# What DNS64 makes of an IPv4 address; the only form whose embedded address is judged instead (RFC 6052).
_NAT64 = ip_network("64:ff9b::/96")

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# A name whose last label is a number is an IPv4 address to a resolver, in forms such as 127.1 or 0x7f000001.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# DNS allows 253; a host and its port are also the name of one folder, of which file systems allow 255 bytes.
_MAX_HOST = 240
_DEFAULT_PORTS = {"http": 80, "https": 443}

Lookup: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""Gives the addresses of a host name, and raises OSError if there are none."""


class BadEndpointError(BackfillError):
    """A URL that cannot be the endpoint of a server; the message says why."""


class RefusedAddressError(BackfillError):
    """An address that must not be talked to."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, in one form for all its spellings; `port` is None if it is the scheme's default."""

    scheme: str
    name: str
    port: int | None

    @property
    def host(self) -> str:
        """`name[:port]`: what identifies the server, as key of its partition and of its rate limit."""
        return self.name if self.port is None else f"{self.name}:{self.port}"

    @property
    def origin(self) -> str:
        """`scheme://name[:port]`, to which a path is appended."""
        return f"{self.scheme}://{self.host}"


def parse_endpoint(text: str) -> Endpoint:
    """Read the endpoint of a PDS: scheme, host and optional port; a single trailing slash is passed over.

    Raises BadEndpointError for anything else: a path, query or user, an IPv6 literal, a host that DNS cannot
    hold, a trailing dot. Source: AT Protocol DID specification, "DID Documents".
    """
    try:
        url = httpx.URL(text)
        name = url.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise BadEndpointError(f"{text[:200]!r} is not a URL: {error}") from None

    def bad(why: str) -> BadEndpointError:
        return BadEndpointError(f"{text[:200]!r} {why}")

    if url.scheme not in _DEFAULT_PORTS:
        raise bad("does not begin with http:// or https://")
    if url.userinfo:
        raise bad("names a user")
    if url.path not in ("", "/") or "?" in text or "#" in text:
        raise bad("has a path, a query or a fragment")
    if ":" in name:
        raise bad("is an IPv6 address: only host names and IPv4 addresses are supported")
    if not is_host_name(name) and not _is_ipv4(name):
        raise bad("does not name a valid host")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise bad("has no valid port")
    return Endpoint(url.scheme, name, _explicit_port(url))


def host_of(url: str) -> str:
    """Return the host of an http(s) URL, `name[:port]`, as `Endpoint.host` writes it."""
    parsed = httpx.URL(url)
    # A trailing dot is another spelling of the same name in DNS.
    name = parsed.raw_host.decode("ascii").lower().rstrip(".")
    if ":" in name:
        name = f"[{ip_address(name)}]"
    return Endpoint(parsed.scheme, name, _explicit_port(parsed)).host


def _explicit_port(url: httpx.URL) -> int | None:
    # httpx leaves a default port in place if the scheme is in capitals.
    return None if url.port == _DEFAULT_PORTS[url.scheme] else url.port


def is_host_name(text: str) -> bool:
    """Tell whether this is a lower-case ASCII host name as DNS can hold it, and not a number (RFC 1123)."""
    labels = text.split(".")
    return (
        len(text) <= _MAX_HOST
        and all(_LABEL.fullmatch(label) for label in labels)
        and not _NUMBER.fullmatch(labels[-1])
    )


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Tell whether an address belongs to a host of the public internet, by no detour through another form."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _REFUSED_V4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_V6 and not any(address in block for block in _REFUSED_V6)


class AddressPolicy:
    """What may be connected to: public addresses, and whatever the study's own `connect_to` names."""

    def __init__(self, *, allow_private: bool = False, connect_to: Mapping[str, str] | None = None) -> None:
        self.allow_private = allow_private
        self._targets = {
            source.lower(): _split_target(target) for source, target in (connect_to or {}).items()
        }
        for source, (host, port) in self._targets.items():
            # A connection to a literal address is opened without asking a resolver, so it cannot be led
            # elsewhere.
            name = source.rpartition(":")[0]
            if not is_host_name(name) and source != f"{host}:{port}":
                raise ConfigError(
                    f"network.connect_to: {source!r} must begin with a host name, to be led elsewhere"
                )

    def target(self, host: str, port: int) -> tuple[str, int] | None:
        """Return the address and port that stand for `host:port`, if the study names some."""
        return self._targets.get(f"{host.lower()}:{port}")

    def check(self, address: str) -> None:
        """Raise RefusedAddressError unless this IP address may be connected to."""
        if self.allow_private:
            return
        parsed = ip_address(address.partition("%")[0])
        if not is_public(parsed):
            raise RefusedAddressError(f"{parsed} is not a public address")

    def check_literal(self, host: str, port: int) -> None:
        """Raise RefusedAddressError if a URL's host is an address, in whatever spelling, that is not allowed.

        Names pass: what they resolve to is judged when it is known.
        """
        if self.target(host, port) is not None:
            return
        if ":" in host or _is_ipv4(host):
            self.check(host)
        elif _NUMBER.fullmatch(host.lower().rstrip(".").rpartition(".")[2]):
            raise RefusedAddressError(f"{host!r} is a number, not the name of a host")


def _split_target(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host.lower(), int(port)


class PolicyResolver(AbstractResolver):
    """Resolves host names for aiohttp's connector, which connects to just the addresses that this returns."""

    def __init__(self, policy: AddressPolicy, lookup: Lookup | None = None) -> None:
        self._policy = policy
        self._lookup = lookup or look_up

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  all are asked for
    ) -> list[ResolveResult]:
        """Return the allowed addresses of a host; raises RefusedAddressError if all it has are refused."""
        target = self._policy.target(host, port)
        if target is not None:
            address, port = target
            addresses = [address] if _is_ipv4(address) else await self._lookup(address, port)
            return [_result(host, port, found) for found in addresses]
        allowed: list[ResolveResult] = []
        refusal: RefusedAddressError | None = None
        for address in await self._lookup(host, port):
            try:
                self._policy.check(address)
            except RefusedAddressError as error:
                refusal = error
            else:
                allowed.append(_result(host, port, address))
        if allowed:
            return allowed
        raise refusal or OSError(f"{host!r} has no address")

    async def close(self) -> None:
        """Nothing is held open."""


def _result(host: str, port: int, address: str) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)


async def look_up(host: str, port: int) -> list[str]:
    """Ask the system's resolver, in a thread of its own: if it hangs, nothing else does, nor the exit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: OSError | None) -> None:
        if answer.cancelled():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(addresses)

    def ask() -> None:
        addresses: list[str] = []
        failure: OSError | None = None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [str(entry[4][0]) for entry in found]
        except OSError as error:
            failure = error
        except UnicodeError as error:
            failure = OSError(f"{host!r} cannot be looked up: {error}")
        # The loop may have ended while the name was looked up; then nobody waits for the answer.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=ask, name=f"lookup {host}", daemon=True).start()
    return await answer
