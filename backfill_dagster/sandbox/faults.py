"""What can go wrong on the way of an answer, switchable while the sandbox runs, per host and per account.

A fault is a small value that turns the answer a server meant to give into the one that it gives. The servers
know nothing of kinds of faults: whatever they answer passes through `Faults.change` before it is sent. A
further fault is a further class with a `change`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GET_REPO = "/xrpc/com.atproto.sync.getRepo"

JSON = ("Content-Type", "application/json; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for some seconds, after that many bytes of the body; at 0, before the first header."""

    after_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sends: status, headers and body, and how the body goes on its way.

    A streamed body has no length in the headers, and is compressed if the client allows it. `pause` and
    `reset_after` count bytes of the body as they are sent, after compression.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    streamed: bool = False
    pause: Pause | None = None
    reset_after: int | None = None


class Fault(Protocol):
    """What every fault has in common."""

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
class Stall:
    """The server falls silent after that many bytes of the body, then goes on; at 0, before the first."""

    after_bytes: int = 0
    seconds: float = 3600

    def change(self, answer: Answer) -> Answer:
        """Add the pause."""
        return replace(answer, pause=Pause(self.after_bytes, self.seconds))


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


AccountFault = ServerError | TooManyRequests | Stall | ResetMidBody | Truncate
HostFault = HostDown | AccountFault

RATE_LIMIT_BODY = b'{"error":"RateLimitExceeded","message":"Rate Limit Exceeded"}'


def _exhausted(retry_after: int) -> tuple[tuple[str, str], ...]:
    return (
        ("RateLimit-Limit", "3000"),
        ("RateLimit-Reset", str(int(time.time()) + retry_after)),
        ("RateLimit-Remaining", "0"),
        ("RateLimit-Policy", "3000;w=300"),
        ("Retry-After", str(retry_after)),
    )


@dataclass(slots=True)
class _Switch:
    """A fault that is on: for some paths or all, for a number of requests or until it is switched off."""

    fault: Fault
    paths: frozenset[str] | None
    times: int | None

    def takes(self, path: str) -> bool:
        """Say whether a request meets the fault, and count it if so."""
        if (self.paths is not None and path not in self.paths) or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Faults:
    """Which faults are on. Safe to use from any thread at any time.

    A fault of a host meets every request to it; one of an account meets `getRepo` for that account, on
    whichever host. `paths` chooses other paths, and `times` switches a fault off after so many requests. If
    several are on, the host's change an answer before the account's, each kind in the order given.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, list[_Switch]] = {}
        self._accounts: dict[str, list[_Switch]] = {}
        self._listeners: list[Callable[[str], None]] = []

    def set_host(
        self, host: str, *faults: HostFault, times: int | None = None, paths: Iterable[str] | None = None
    ) -> None:
        """Give a host these faults in place of those it has; in force when this returns."""
        chosen = None if paths is None else frozenset(paths)
        with self._lock:
            self._hosts[host] = [_Switch(fault, chosen, times) for fault in faults]
        self._tell(host)

    def set_account(
        self,
        did: str,
        *faults: AccountFault,
        times: int | None = None,
        paths: Iterable[str] = (GET_REPO,),
    ) -> None:
        """Give an account these faults in place of those it has."""
        chosen = frozenset(paths)
        with self._lock:
            self._accounts[did] = [_Switch(fault, chosen, times) for fault in faults]

    def clear(self) -> None:
        """Switch all faults off."""
        with self._lock:
            hosts = list(self._hosts)
            self._hosts.clear()
            self._accounts.clear()
        for host in hosts:
            self._tell(host)

    def is_down(self, host: str) -> bool:
        """Say whether a host refuses connections."""
        with self._lock:
            return any(isinstance(switch.fault, HostDown) for switch in self._hosts.get(host, ()))

    def change(self, answer: Answer, *, host: str, path: str, did: str | None) -> Answer:
        """Pass an answer through the faults of its host and its account."""
        with self._lock:
            switches = (*self._hosts.get(host, ()), *self._accounts.get(did or "", ()))
            met = [switch.fault for switch in switches if switch.takes(path)]
        for fault in met:
            answer = fault.change(answer)
        return answer

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called with a host's name when its faults change, in the thread that does it."""
        self._listeners.append(listener)

    def _tell(self, host: str) -> None:
        for listener in self._listeners:
            listener(host)
