"""The HTTP client: bounded, polite in its headers, and closed to addresses that the study does not allow.

httpx speaks over aiohttp's connector here, whose cost per request does not grow with its pool and whose
resolver can be ours. Redirects are judged in this module, and followed in `turns`, each in its host's turn.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
import time
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Self

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from httpx_aiohttp import AiohttpTransport

from backfill_dagster.errors import BackfillError, ConfigError, StorageError
from backfill_dagster.network.addresses import AddressPolicy, PolicyResolver, RefusedAddressError, host_of
from backfill_dagster.network.content_encoding import (
    BadEncodingError,
    IncompleteEncodingError,
    decoder_for,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO

    from backfill_dagster.config.network import Network
    from backfill_dagster.network.addresses import Lookup

MAX_ERROR_BODY = 64 * 1024
_MAX_DETAIL = 300
_WRITE_BUFFER = 1024 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A host by its characters; whether it is a good one, the resolver and the address policy decide.
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")


class RequestFault(StrEnum):
    """Why there is no whole answer; an answer of any HTTP status is none of these."""

    UNREACHABLE = "unreachable"
    REFUSED_ADDRESS = "refused_address"
    TIMED_OUT = "timed_out"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    BAD_REDIRECT = "bad_redirect"
    BAD_ENCODING = "bad_encoding"
    BAD_TLS = "bad_tls"


class RequestFailedError(BackfillError):
    """A request that brought no whole answer: `kind` says what went wrong, `detail` what was seen of it."""

    def __init__(self, kind: RequestFault, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class RedirectedError(RequestFailedError):
    """An answer that sends its client on, to `target`; a failure to those who do not follow it."""

    def __init__(self, target: str, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(RequestFault.BAD_REDIRECT, f"redirected to {target}"[:_MAX_DETAIL])
        self.target = target
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Answer:
    """A small answer, decoded. `headers` ignore case; `url` is what was asked for.

    Of a body with a status other than 200, only the first 64 kB are kept.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


@dataclass(frozen=True, slots=True)
class Download:
    """An answer whose body, if the status is 200, is in a file.

    `bytes_received` counts the body on the wire, `bytes_written` the file; `error_body` is the beginning (64
    kB) of the body of any other status, and then no file was written.
    """

    status: int
    headers: Mapping[str, str]
    bytes_received: int
    bytes_written: int
    error_body: bytes
    seconds: float


class HttpClient:
    """Asks servers; an async context manager, of use on the event loop on which it was entered.

    Times are in seconds: `connect_timeout` bounds the name's resolution, the connection and TLS together,
    `read_timeout` the longest silence within an answer, and both together the time until its body begins. A
    download that after `pace_grace` seconds has brought fewer than `min_bytes_per_second`, on average since
    its head, is given up as timed out; 0 lets it go on.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        contact: str | None,
        connect_timeout: float,
        read_timeout: float,
        min_bytes_per_second: float = 0,
        pace_grace: float = 30,
        ssl_context: ssl.SSLContext | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        self.policy = policy
        self._headers = {
            "User-Agent": user_agent(contact),
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        # The transport hands `pool` to aiohttp as the bound of resolving and connecting together.
        timeouts = httpx.Timeout(read_timeout, connect=connect_timeout, pool=connect_timeout)
        self._timeouts = {"timeout": timeouts.as_dict()}
        self._connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self._pace = _Pace(min_bytes_per_second, pace_grace)
        self._ssl_context = ssl_context
        self._lookup = lookup
        self._transport: AiohttpTransport | None = None

    @classmethod
    def from_settings(cls, network: Network) -> Self:
        """Build the client that a study's `network` section describes."""
        policy = AddressPolicy(allow_private=network.allow_private_addresses, connect_to=network.connect_to)
        return cls(
            policy,
            contact=network.contact,
            connect_timeout=network.connect_timeout_seconds,
            read_timeout=network.read_timeout_seconds,
            min_bytes_per_second=network.min_bytes_per_second,
        )

    async def __aenter__(self) -> Self:
        context = self._ssl_context or _default_ssl_context()
        connector = aiohttp.TCPConnector(
            resolver=PolicyResolver(self.policy, self._lookup),
            # Each connection is judged by addresses resolved for it. How many there may be, the host gates
            # say.
            use_dns_cache=False,
            limit=0,
            ssl=context,
        )
        session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
        self._transport = AiohttpTransport(verify=context, trust_env=False, client=session)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    async def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        max_bytes: int,
        total_timeout: float | None = None,
    ) -> Answer:
        """Get a small answer into memory; in seconds, `total_timeout` bounds all of it.

        Left out, it is the connect and the read time-out together. Raises RequestFailedError.
        """
        bound = total_timeout if total_timeout is not None else self._connect_timeout + self.read_timeout
        async with _Deadline(bound, self.read_timeout) as deadline, self._open(url, params) as response:
            if response.status_code == 200:
                body = await _read(_Body(response, max_bytes, deadline))
            else:
                body, _ = await self._error_body(response)
            return Answer(response.status_code, response.headers, body, str(response.url))

    async def download(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        to: Path,
        max_bytes: int,
        total_timeout: float,
    ) -> Download:
        """Stream the body of a 200 into the file `to`; no file is left behind by anything else.

        `max_bytes` bounds the body on the wire and the file alike. Raises RequestFailedError.
        """
        started = time.monotonic()
        async with (
            _Deadline(total_timeout, self.read_timeout) as deadline,
            self._open(url, params) as response,
        ):
            if response.status_code != 200:
                error_body, received = await self._error_body(response)
                written = 0
            else:
                error_body = b""
                received, written = await _save(_Body(response, max_bytes, deadline, self._pace), to)
            return Download(
                response.status_code,
                response.headers,
                received,
                written,
                error_body,
                time.monotonic() - started,
            )

    @asynccontextmanager
    async def _open(self, url: str, params: Mapping[str, str] | None) -> AsyncIterator[httpx.Response]:
        """Send a GET and hand over the response with its body yet unread; raises RedirectedError for a redirect."""
        if self._transport is None:
            raise RuntimeError("the HTTP client is used outside of `async with`")
        target = httpx.URL(url, params=dict(params)) if params else httpx.URL(url)
        async with _Deadline(self._connect_timeout + self.read_timeout, self.read_timeout):
            response = await self._send(self._transport, target)
        try:
            if response.status_code in _REDIRECTS:
                target = _redirect_target(response)
                self._check_literal(target)
                raise RedirectedError(str(target), response.status_code, response.headers)
            yield response
        finally:
            await response.aclose()

    async def _send(self, transport: AiohttpTransport, url: httpx.URL) -> httpx.Response:
        # Straight to the transport: httpx.AsyncClient would bring cookies, proxies and redirects of its own.
        self._check_literal(url)
        try:
            request = httpx.Request("GET", url, headers=self._headers, extensions=self._timeouts)
            return await transport.handle_async_request(request)
        except _NETWORK_ERRORS as error:
            raise _failure(error, RequestFault.UNREACHABLE) from error

    def _check_literal(self, url: httpx.URL) -> None:
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            self.policy.check_literal(url.raw_host.decode("ascii"), port)
        except RefusedAddressError as error:
            raise _failure(error, RequestFault.REFUSED_ADDRESS) from error

    async def _error_body(self, response: httpx.Response) -> tuple[bytes, int]:
        """Read the beginning of an error's body, as far as it can be had: the status says enough without."""
        kept = bytearray()
        received = 0
        try:
            async with _Deadline(self.read_timeout, self.read_timeout) as deadline:
                body = _Body(response, 4 * MAX_ERROR_BODY, deadline)
                async with aclosing(body.pieces()) as pieces:
                    async for piece in pieces:
                        received = body.received
                        kept += piece
                        if len(kept) >= MAX_ERROR_BODY:
                            break
        except RequestFailedError:
            pass
        return bytes(kept[:MAX_ERROR_BODY]), received


def user_agent(contact: str | None) -> str:
    """Return the User-Agent: this package, its version, and whom to ask about its requests."""
    name = f"backfill-dagster/{version('backfill-dagster')}"
    if not contact:
        return name
    if not (contact.isascii() and contact.isprintable()) or "(" in contact or ")" in contact:
        raise ConfigError(f"network.contact = {contact!r}: must be plain ASCII text without parentheses")
    return f"{name} (+{contact})"


@cache
def _default_ssl_context() -> ssl.SSLContext:
    """Load the authorities that httpx trusts, or those of SSL_CERT_FILE, where a gateway has one of its own."""
    return httpx.create_ssl_context(trust_env=True)


@dataclass(frozen=True, slots=True)
class _Pace:
    """The fewest bytes a second, on average, that a body must come with after the grace, in seconds."""

    bytes_per_second: float
    grace: float

    def check(self, received: int, seconds: float) -> None:
        """Raise RequestFailedError if so many bytes in so many seconds are too few."""
        if seconds > self.grace and received < self.bytes_per_second * seconds:
            raise RequestFailedError(
                RequestFault.TIMED_OUT,
                f"only {received:,} bytes came in {seconds:.0f} s, fewer than {self.bytes_per_second:g} a second",
            )


_ANY_PACE = _Pace(0, math.inf)


class _Body:
    """One response's body, decoded piece by piece; raises RequestFailedError at the first sign of trouble."""

    def __init__(
        self, response: httpx.Response, max_bytes: int, deadline: _Deadline, pace: _Pace = _ANY_PACE
    ) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._pace = pace
        self.received = 0
        self.decoded = 0

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the decoded body; neither it nor what is on the wire may grow beyond `max_bytes`."""
        try:
            decoder = decoder_for(self._response.headers.get("content-encoding", ""))
            self._deadline.note_progress()
            begun = time.monotonic()
            async for chunk in self._response.aiter_raw():
                self._deadline.note_progress()
                self.received += len(chunk)
                self._check(self.received)
                self._pace.check(self.received, time.monotonic() - begun)
                for piece in decoder.decode(chunk):
                    self.decoded += len(piece)
                    self._check(self.decoded)
                    yield piece
            decoder.finish()
        except BadEncodingError as error:
            raise RequestFailedError(RequestFault.BAD_ENCODING, str(error)) from None
        except IncompleteEncodingError as error:
            raise RequestFailedError(RequestFault.TRUNCATED, str(error)) from None
        except _NETWORK_ERRORS as error:
            raise _failure(error, RequestFault.TRUNCATED) from error

    def check_promise(self) -> None:
        """Raise at once if the head of the response says that the body will be too large."""
        promised = self._response.headers.get("content-length", "")
        if promised.isdecimal() and len(promised) < 20:
            self._check(int(promised))

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise RequestFailedError(
                RequestFault.TOO_LARGE, f"the body is larger than {self._max_bytes:,} bytes"
            )


async def _read(body: _Body) -> bytes:
    content = bytearray()
    body.check_promise()
    async with aclosing(body.pieces()) as pieces:
        async for piece in pieces:
            content += piece
    return bytes(content)


async def _save(body: _Body, to: Path) -> tuple[int, int]:
    body.check_promise()
    async with aclosing(body.pieces()) as pieces:
        with _scratch_file(to) as file:
            async for piece in pieces:
                file.write(piece)
    return body.received, body.decoded


@contextmanager
def _scratch_file(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("wb", buffering=_WRITE_BUFFER) as file:
            yield file
    except BaseException as error:
        with suppress(OSError):  # it is scratch, and its folder will be swept
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # What the network raises is named already: this is the disk, which no other server will mend.
            raise StorageError.unwritable(path, error) from error
        raise


class _Deadline:
    """Ends a request that takes longer than `total` seconds, or whose body stands still for `silence` seconds.

    aiohttp watches over silence too, but waits for ever on a body whose connection it closed for bad framing.
    """

    def __init__(self, total: float, silence: float) -> None:
        self._total = total
        self._silence = silence
        self._clock = asyncio.get_running_loop().time
        self._end = self._clock() + total
        self._scope = asyncio.timeout_at(self._end)
        self._noted_at = -math.inf

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, traceback)
        except TimeoutError:
            said = (
                f"the answer was not complete after {self._total:g} s"
                if self._clock() >= self._end
                else f"nothing came for {self._silence:g} s"
            )
            raise RequestFailedError(RequestFault.TIMED_OUT, said) from None

    def note_progress(self) -> None:
        """Say that bytes have come, or that they are waited for from now on."""
        now = self._clock()
        # Setting a timer costs more than reading a chunk: it is only moved when much of its time is over.
        if now - self._noted_at > self._silence / 4:
            self._noted_at = now
            self._scope.reschedule(min(self._end, now + 1.25 * self._silence))


def _redirect_target(response: httpx.Response) -> httpx.URL:
    def bad(why: str) -> RequestFailedError:
        return RequestFailedError(RequestFault.BAD_REDIRECT, f"{response.url} redirects {why}"[:_MAX_DETAIL])

    location = response.headers.get("location")
    if not location:
        raise bad("to nowhere")
    try:
        target = response.url.join(location)
        host_of(str(target))
    except (httpx.InvalidURL, ValueError, KeyError):
        raise bad(f"to {location!r}, which is not a URL") from None
    if target.scheme not in ("http", "https") or not _HOST.fullmatch(target.raw_host) or target.userinfo:
        raise bad(f"to {location!r}")
    if response.url.scheme == "https" and target.scheme != "https":
        raise bad(f"from https to {location!r}")
    return target


# Whatever httpx and aiohttp raise for a server's or the network's fault; the resolver's refusal comes through
# them.
_NETWORK_ERRORS = (
    httpx.HTTPError,
    httpx.InvalidURL,
    aiohttp.ClientError,
    HttpProcessingError,
    OSError,
    RefusedAddressError,
)


def _failure(error: BaseException, otherwise: RequestFault) -> RequestFailedError:
    """Name what went wrong; `otherwise` is what to call a connection that merely broke."""
    # httpx-aiohttp calls a lost connection a time-out: only the error beneath says what it was.
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) and error.__cause__ else error
    detail = " ".join((str(cause) or type(cause).__name__).split())[:_MAX_DETAIL]
    if isinstance(cause, RefusedAddressError):
        return RequestFailedError(RequestFault.REFUSED_ADDRESS, detail)
    if isinstance(cause, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError)):
        return RequestFailedError(RequestFault.BAD_TLS, detail)
    if isinstance(cause, (TimeoutError, httpx.TimeoutException)):
        return RequestFailedError(RequestFault.TIMED_OUT, detail)
    return RequestFailedError(otherwise, detail)
