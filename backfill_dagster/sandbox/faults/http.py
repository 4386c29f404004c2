"""Faults on the way of an answer: statuses, headers, bodies, and how these arrive.

Each turns the answer that a server meant to give into the one that it gives.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol

from backfill_dagster.sandbox.answer import HTML, JSON, RATE_LIMIT_BODY, Answer, Headers, Pause
from backfill_dagster.sandbox.car_writer import write_blocks
from backfill_dagster.sandbox.dag_cbor import cid_of
from backfill_dagster.sandbox.mst_writer import Block

_PAGE = b"<!DOCTYPE html><html><head><title>%s</title></head><body><h1>%s</h1></body></html>"


class ChangesAnswer(Protocol):
    """What all faults on the way have in common."""

    def change(self, answer: Answer) -> Answer:
        """Turn the answer that was meant into the one that is given."""


@dataclass(frozen=True, slots=True)
class HostDown:
    """The host's port is closed: connections are refused."""

    def change(self, answer: Answer) -> Answer:
        """Change nothing: a host that is down is never asked."""
        return answer


@dataclass(frozen=True, slots=True)
class ServerError:
    """5xx with the body of a PDS that has failed."""

    status: int = 503

    def change(self, answer: Answer) -> Answer:
        """Replace the answer."""
        del answer
        body = b'{"error":"InternalServerError","message":"Internal Server Error"}'
        return Answer(self.status, (JSON,), body)


@dataclass(frozen=True, slots=True)
class TooManyRequests:
    """429: as the official server gives it, without any of its headers, or as a proxy's HTML page.

    `retry_after` is in seconds; the official headers say it as `Retry-After` and, in unix time, as
    `RateLimit-Reset`.
    """

    style: Literal["official", "no_headers", "html"] = "official"
    retry_after: int = 1

    def change(self, answer: Answer) -> Answer:
        """Replace the answer."""
        del answer
        if self.style == "html":
            page = b"<html><head><title>429</title></head><body>429 Too Many Requests</body></html>"
            return Answer(429, (("Content-Type", "text/html"),), page)
        headers = () if self.style == "no_headers" else _exhausted(self.retry_after)
        return Answer(429, (*headers, JSON), RATE_LIMIT_BODY)


@dataclass(frozen=True, slots=True)
class HostileRateLimits:
    """The answer is as it was meant, and its rate-limit headers are nonsense or malice.

    `past` and `far` say that nothing is left until a second long gone, or one in ten years; `zero` and
    `negative` that nothing is ever allowed; `huge` has numbers of 400 digits, `words` none; `crawl` allows one
    request a day.
    """

    style: Literal["past", "far", "zero", "negative", "huge", "words", "crawl"] = "far"

    def change(self, answer: Answer) -> Answer:
        """Replace the headers."""
        others = [(name, value) for name, value in answer.headers if name.lower() not in _LIMIT_HEADERS]
        return replace(answer, headers=(*others, *zip(_LIMIT_HEADERS.values(), self._values(), strict=True)))

    def _values(self) -> tuple[str, ...]:
        now, nines = int(time.time()), "9" * 400
        return {
            "past": ("3000", "0", "1", "3000;w=300", "0"),
            "far": ("3000", "0", str(now + 10 * 31_536_000), "3000;w=300", str(10 * 31_536_000)),
            "zero": ("0", "0", "0", "0;w=0", "0"),
            "negative": ("-3000", "-1", "-300", "-3000;w=-300", "-1"),
            "huge": (nines, nines, nines, f"{nines};w={nines}", nines),
            "words": ("many", "none", "soon", "few;w=NaN", "inf"),
            "crawl": ("1", "1", str(now + 86_400), "1;w=86400", "86400"),
        }[self.style]


@dataclass(frozen=True, slots=True)
class Stall:
    """The server falls silent after that many bytes of the body, then goes on; at 0, before the first."""

    after_bytes: int = 0
    seconds: float = 3600

    def change(self, answer: Answer) -> Answer:
        """Add the pause."""
        return replace(answer, pause=Pause(self.after_bytes, self.seconds))


@dataclass(frozen=True, slots=True)
class SlowDrip:
    """The body comes at that many bytes per second."""

    bytes_per_second: float = 10

    def change(self, answer: Answer) -> Answer:
        """Slow it down."""
        return replace(answer, bytes_per_second=self.bytes_per_second)


@dataclass(frozen=True, slots=True)
class ResetMidBody:
    """The connection is reset (RST) after that many bytes of the body."""

    after_bytes: int = 1000

    def change(self, answer: Answer) -> Answer:
        """Add the reset."""
        return replace(answer, reset_after=self.after_bytes)


@dataclass(frozen=True, slots=True)
class Truncate:
    """The body ends at that byte, and to HTTP all is well.

    Counted before compression; a negative number counts from the body's end.
    """

    at_byte: int

    def change(self, answer: Answer) -> Answer:
        """Cut the body."""
        return replace(answer, body=answer.body[: self.at_byte])


@dataclass(frozen=True, slots=True)
class EmptyBody:
    """200, and not one byte."""

    def change(self, answer: Answer) -> Answer:
        """Take the body away."""
        return replace(answer, status=200, body=b"")


@dataclass(frozen=True, slots=True)
class HtmlPage:
    """200 with a page for people."""

    def change(self, answer: Answer) -> Answer:
        """Replace the answer."""
        del answer
        return Answer(200, (HTML,), _PAGE % (b"Maintenance", b"We will be back soon"))


@dataclass(frozen=True, slots=True)
class WrongContentType:
    """The right body under the wrong name. One who proves the body may take it."""

    content_type: str = "text/html; charset=utf-8"

    def change(self, answer: Answer) -> Answer:
        """Replace the header."""
        others = [(name, value) for name, value in answer.headers if name.lower() != "content-type"]
        return replace(answer, headers=(*others, ("Content-Type", self.content_type)))


@dataclass(frozen=True, slots=True)
class WrongEncoding:
    """The body is not what its Content-Encoding says."""

    encoding: str = "gzip"

    def change(self, answer: Answer) -> Answer:
        """Add the header."""
        return replace(answer, headers=(*answer.headers, ("Content-Encoding", self.encoding)))


@dataclass(frozen=True, slots=True)
class EndlessBody:
    """The body does not end: sound blocks that nothing leads to follow, as many as are taken."""

    def change(self, answer: Answer) -> Answer:
        """Add them."""
        return replace(answer, streamed=True, endless=_filler())


@dataclass(frozen=True, slots=True)
class GzipBomb:
    """The right body in gzip, whoever asked for it, and after it so many megabytes (2^20) of zeros.

    These take a thousandth of their size on the way.
    """

    megabytes: int = 1024

    def change(self, answer: Answer) -> Answer:
        """Compress the body and the zeros, as members of one gzip file."""
        body = _gzip(answer.body) + _gzip(bytes(2**20)) * self.megabytes
        return replace(answer, body=body, headers=(*answer.headers, ("Content-Encoding", "gzip")))


@dataclass(frozen=True, slots=True)
class RedirectLoop:
    """302 to where the request went already."""

    def change(self, answer: Answer) -> Answer:
        """Replace the answer."""
        del answer
        # A reference that is but a fragment leads to the same resource, query and all (RFC 3986, section 5.2.2).
        return Answer(302, (("Location", "#again"), HTML), b"")


@dataclass(frozen=True, slots=True)
class RedirectTo:
    """A redirect to somewhere else, unless told otherwise to what clouds keep their machines' secrets at."""

    location: str = "http://169.254.169.254/latest/meta-data/"
    status: int = 302

    def change(self, answer: Answer) -> Answer:
        """Replace the answer."""
        del answer
        return Answer(self.status, (("Location", self.location), HTML), b"")


# In the order of the values of `HostileRateLimits`; the keys are for comparison.
_LIMIT_HEADERS = {
    name.lower(): name
    for name in (
        "RateLimit-Limit",
        "RateLimit-Remaining",
        "RateLimit-Reset",
        "RateLimit-Policy",
        "Retry-After",
    )
}


def _exhausted(retry_after: int) -> Headers:
    return (
        ("RateLimit-Limit", "3000"),
        ("RateLimit-Reset", str(int(time.time()) + retry_after)),
        ("RateLimit-Remaining", "0"),
        ("RateLimit-Policy", "3000;w=300"),
        ("Retry-After", str(retry_after)),
    )


@lru_cache(maxsize=1)
def _filler() -> bytes:
    # A byte string of 64 kB, as one block.
    data = b"\x59\xff\xff" + bytes(0xFFFF)
    return write_blocks([Block(cid_of(data), data)])


def _gzip(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()
