"""How often a host is asked: a token bucket and a bound on requests in flight for each, and its own wishes.

One gate stands before each host for the whole process. It is used from any event loop and thread, since runs
come and go while a host's limit stays.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from backfill_dagster.errors import BackfillError
from backfill_dagster.monitoring import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

logger = logging.getLogger(__name__)

# What a server may ask of us, whatever number it sends; seconds.
MIN_PARK = 1.0
MAX_PARK = 900.0
# The first pause after a 429 that does not say how long.
FIRST_PARK = 5.0
# A server counts in windows that are not ours, and requests arrive bunched: stay this far below its limit.
_MARGIN = 0.9
# A smaller RateLimit-Reset is a span of seconds (IETF drafts), a larger one a unix second (AT Protocol).
_EARLIEST_UNIX_SECOND = 1_000_000_000

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,6})?", re.ASCII)
_POLICY_LIMIT = re.compile(r"(?:^\s*|;\s*q=)(\d{1,15})\s*(?:;|$)", re.ASCII)
_POLICY_WINDOW = re.compile(r";\s*w=(\d{1,15})\s*(?:;|$)", re.ASCII)


class HostParkedError(BackfillError):
    """A host that asks for a longer pause than its caller can wait."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(f"{host} asks for a pause of another {seconds:.0f} s")
        self.host = host
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class GateState:
    """How far a host's limit is used up: tokens at the unix second `at`, and when its pause ends, if it has one."""

    at: float
    tokens: float
    parked_until: float | None


class TokenBucket:
    """At most `burst + rate * t` tokens in any `t` seconds; `rate` is per second, `burst` at least 1.

    Tokens are fractional and refill with the time that has passed, so that asking often loses nothing.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not (0 < rate < math.inf and 1 <= burst < math.inf):
            raise ValueError(f"a bucket needs a rate above 0 and a burst of at least 1: {rate=}, {burst=}")
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled_at = clock()

    def take(self) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        self._refill()
        # Sums of fractions may end a hair below one after exactly the time that was waited for.
        if self._tokens >= 1 - 1e-9:
            self._tokens = max(0.0, self._tokens - 1)
            return 0.0
        return (1 - self._tokens) / self.rate

    @property
    def tokens(self) -> float:
        """What is in it now."""
        self._refill()
        return self._tokens

    def keep_at_most(self, tokens: float) -> None:
        """Take out what is in it beyond so many tokens."""
        self._refill()
        self._tokens = max(0.0, min(self._tokens, tokens))

    def slow_down(self, rate: float, burst: float) -> None:
        """Lower the rate and the burst to these; neither is ever raised."""
        self._refill()
        self.rate = min(self.rate, rate)
        self.burst = max(1.0, min(self.burst, burst))
        self._tokens = min(self._tokens, self.burst)

    def _refill(self) -> None:
        now = self._clock()
        # A clock that stands still or steps back refills nothing.
        passed = max(0.0, now - self._filled_at)
        self._filled_at = max(now, self._filled_at)
        self._tokens = min(self.burst, self._tokens + passed * self.rate)


class _Ticket:
    """One request, waiting or under way, and the way to wake it on its own event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        with suppress(RuntimeError):  # its loop has ended
            self.loop.call_soon_threadsafe(self._woken.set)

    async def sleep(self, seconds: float | None) -> None:
        """Wait until woken, or for these seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()


class HostGate:
    """Stands before one host: lets requests through in turn, none before its time.

    Rates are per second. `requests` counts what was let through, `parks` the pauses that the host asked for.
    """

    def __init__(
        self,
        host: str,
        *,
        rate: float,
        burst: float,
        in_flight: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = host
        self.requests = 0
        self.parks = 0
        self._clock = clock
        # Reentrant: an abandoned request that is garbage-collected gives its place back wherever that
        # happens.
        self._lock = threading.RLock()
        self._bucket = TokenBucket(rate, burst, clock)
        self._slots = in_flight
        self._waiting: deque[_Ticket] = deque()
        self._under_way: set[_Ticket] = set()
        self._resume_at = -math.inf
        self._parked_until: float | None = None
        self._limited_since: float | None = None
        self._refusals_in_a_row = 0
        self._watchers: list[Callable[[], None]] = []
        self._is_closed = False

    @property
    def rate(self) -> float:
        """Requests per second at most, by now: as configured, or less if the host's headers say so."""
        return self._bucket.rate

    @property
    def parked_until(self) -> float | None:
        """The unix second until which the host wants to be left alone, or None if it does not."""
        return self._parked_until if self.parked_for() > 0 else None

    @property
    def under_way(self) -> int:
        """Requests that are under way."""
        return len(self._under_way)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def parked_for(self) -> float:
        """Return the seconds for which the host still wants to be left alone; 0 if it does not."""
        return max(0.0, self._resume_at - self._clock())

    def limited_for(self) -> float:
        """Return the seconds for which the host will, at the end of its pause, have asked for nothing but pauses."""
        with self._lock:
            if self._limited_since is None:
                return 0.0
            return max(self._resume_at, self._clock()) - self._limited_since

    def refused_for(self) -> float:
        """Return the seconds for which the host has asked for nothing but pauses so far."""
        with self._lock:
            return 0.0 if self._limited_since is None else self._clock() - self._limited_since

    @asynccontextmanager
    async def request(self, max_park: float = math.inf) -> AsyncIterator[None]:
        """Hold one of the host's places for the time of one request; waits for its turn without holding any.

        Raises HostParkedError if, when the pause that the host asks for ends, it would have answered nothing
        but "too many requests" for more than `max_park` seconds.
        """
        ticket = await self._admission(max_park)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(ticket)
                self._wake_first()

    def observe(self, status: int, headers: Mapping[str, str], now: float | None = None) -> None:
        """Heed what an answer says about the host's limits; `now` is the unix second of its arrival.

        A pause that it asks for lasts between MIN_PARK and MAX_PARK. A 429 that names none doubles the pause
        of the 429 before it, as does one that follows on a pause which was too short.
        """
        now = time.time() if now is None else now
        server_now = _http_date(headers.get("date")) or now
        with self._lock:
            for limit, window in _policies(headers.get("ratelimit-policy", "")):
                self._fit(limit, window)
            parked = self._resume_at > self._clock()
            wish = _wished_pause(status, headers, server_now, others=len(self._under_way))
            if status == 429:
                # Those sent before the pause began come back refused as well, and tell nothing new.
                if not parked:
                    doubled = FIRST_PARK * 2.0 ** min(self._refusals_in_a_row, 32)
                    least = doubled / 2 if self._refusals_in_a_row else MIN_PARK
                    wish = doubled if wish is None else max(wish, least)
                    self._refusals_in_a_row += 1
                self._park(wish or MIN_PARK, now)
            else:
                if status < 500 and not parked:
                    self._refusals_in_a_row = 0
                    self._limited_since = None
                if wish is not None:
                    self._park(wish, now)
            self._wake_first()

    def slow_down(self, rate: float) -> None:
        """Lower the rate to this one; it is never raised."""
        with self._lock:
            self._bucket.slow_down(rate, self._bucket.burst)

    def state(self, now: float | None = None) -> GateState:
        """Return how far the limit is used up at the unix second `now`."""
        with self._lock:
            return GateState(time.time() if now is None else now, self._bucket.tokens, self.parked_until)

    def resume(self, state: GateState, now: float | None = None) -> None:
        """Go on where another gate of this host left off; what is known here of the limit holds as well."""
        now = time.time() if now is None else now
        with self._lock:
            # The wall clock may have been set back in between.
            passed = max(0.0, now - state.at)
            self._bucket.keep_at_most(state.tokens + passed * self._bucket.rate)
            if state.parked_until is not None and state.parked_until > now:
                self._park(state.parked_until - now, now)
            self._wake_first()

    def close(self) -> None:
        """Let nothing more through until `open`; what is under way goes on."""
        with self._lock:
            self._is_closed = True

    def open(self) -> None:
        """Undo `close`."""
        with self._lock:
            self._is_closed = False
            self._wake_first()

    def watch(self, on_park: Callable[[], None]) -> None:
        """Have this called, in the middle of things, whenever the host's pause begins or grows longer."""
        with self._lock:
            self._watchers.append(on_park)

    def unwatch(self, on_park: Callable[[], None]) -> None:
        """Undo `watch`; when this returns, it is not being called either."""
        with self._lock:
            self._watchers.remove(on_park)

    async def _admission(self, max_park: float) -> _Ticket:
        ticket = _Ticket()
        with self._lock:
            self._waiting.append(ticket)
        admitted = False
        try:
            while True:
                with self._lock:
                    wait = self._try_to_admit(ticket, max_park)
                if wait == 0:
                    admitted = True
                    return ticket
                await ticket.sleep(wait)
        finally:
            if not admitted:
                with self._lock:
                    with suppress(ValueError):
                        self._waiting.remove(ticket)
                    self._wake_first()

    def _try_to_admit(self, ticket: _Ticket, max_park: float) -> float | None:
        """Let the ticket through (0), or say for how long to wait; None waits until it is woken."""
        park = self.parked_for()
        if park > 0 and self._limited_since is not None:
            refused_for = self._resume_at - self._limited_since
            if refused_for > max_park:
                raise HostParkedError(self.host, park)
        self._forget_ended_loops()
        if self._waiting[0] is not ticket:
            return None
        if park > 0:
            return park
        if self._is_closed or len(self._under_way) >= self._slots:
            return None
        wait = self._bucket.take()
        if wait == 0:
            self._waiting.popleft()
            self._under_way.add(ticket)
            self.requests += 1
            self._wake_first()
        return wait

    def _forget_ended_loops(self) -> None:
        """Drop requests whose event loop was closed under them, which nobody else will."""
        while self._waiting and self._waiting[0].loop.is_closed():
            self._waiting.popleft()
        if len(self._under_way) >= self._slots:
            self._under_way = {ticket for ticket in self._under_way if not ticket.loop.is_closed()}

    def _wake_first(self) -> None:
        self._forget_ended_loops()
        if self._waiting:
            self._waiting[0].wake()

    def _park(self, seconds: float, now: float) -> None:
        seconds = min(max(seconds, MIN_PARK), MAX_PARK)
        at = self._clock()
        if self._limited_since is None:
            self._limited_since = at
        if at + seconds <= self._resume_at:
            return
        if self._resume_at <= at:
            self.parks += 1
            events.emit(events.HOST_PARKED, host=self.host, seconds=seconds, number=self.parks)
            # Of a host that never has enough, only each doubling of their number is told.
            if self.parks.bit_count() == 1:
                logger.warning("%s asks for a pause of %.0f s, number %d", self.host, seconds, self.parks)
        self._resume_at = at + seconds
        self._parked_until = now + seconds
        for watcher in self._watchers:
            watcher()

    def _fit(self, limit: int, window: int) -> None:
        """Lower rate and burst until both together fit the host's own limit of requests per window."""
        bucket = self._bucket
        if bucket.rate * window <= _MARGIN * (limit - bucket.burst):
            return
        burst = min(bucket.burst, max(1.0, limit / 10))
        # One token at a time and less than one per window still come to a request per window, which any limit allows.
        rate = _MARGIN * max(limit - burst, 1.0) / window
        bucket.slow_down(max(rate, 1 / MAX_PARK), burst)


class HostGates:
    """The gates of all hosts: one for each, made when it is first asked for.

    `rate` (requests per second), `burst` and `in_flight` are what a host gets unless its caller says
    otherwise.
    """

    def __init__(
        self,
        *,
        rate: float,
        burst: float,
        in_flight: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._in_flight = in_flight
        self._clock = clock
        self._lock = threading.Lock()
        self._gates: dict[str, HostGate] = {}

    def gate(self, host: str, *, rate: float | None = None, in_flight: int | None = None) -> HostGate:
        """Return the gate of `host` (`name[:port]`, the key of its partition).

        The slowest of the rates that are asked for holds: to a host, all studies are one client.
        """
        with self._lock:
            gate = self._gates.get(host)
            if gate is None:
                gate = HostGate(
                    host,
                    rate=rate or self._rate,
                    burst=self._burst,
                    in_flight=in_flight or self._in_flight,
                    clock=self._clock,
                )
                self._gates[host] = gate
            elif rate is not None:
                gate.slow_down(rate)
            return gate

    def parked_hosts(self) -> dict[str, float]:
        """Return the hosts that are parked now, and for how many seconds they have wanted nothing but pauses."""
        with self._lock:
            gates = list(self._gates.values())
        return {gate.host: gate.refused_for() for gate in gates if gate.parked_for() > 0}

    def known_gate(self, host: str) -> HostGate | None:
        """Return the gate of a host that was asked for before, at its own pace; None if none was."""
        with self._lock:
            return self._gates.get(host)


def _wished_pause(status: int, headers: Mapping[str, str], now: float, others: int) -> float | None:
    """Return the pause in seconds that an answer asks for; None if it asks for none that can be understood.

    `others` are requests under way, which may use up what remains. Sources: RFC 9110, section 10.2.3, for
    Retry-After; the RateLimit headers as the reference PDS sends them.
    """
    wishes = []
    if status in (429, 503):
        retry_after = headers.get("retry-after", "").strip()
        if _NUMBER.fullmatch(retry_after):
            wishes.append(float(retry_after))
        elif (date := _http_date(retry_after)) is not None:
            wishes.append(date - now)
    remaining = headers.get("ratelimit-remaining", "").strip()
    used_up = bool(_NUMBER.fullmatch(remaining)) and float(remaining) <= others
    reset = headers.get("ratelimit-reset", "").strip()
    if (status == 429 or used_up) and _NUMBER.fullmatch(reset):
        moment = float(reset)
        wishes.append(moment if moment < _EARLIEST_UNIX_SECOND else moment - now)
    return max(wishes, default=None)


# What hosts say with every answer is mostly what they said with the one before.
@lru_cache(maxsize=1000)
def _policies(stated: str) -> tuple[tuple[int, int], ...]:
    """Return the limits that a host states: requests, and the window in seconds that they are counted in."""
    policies = []
    for item in stated.split(",")[:16]:
        limit, window = _POLICY_LIMIT.search(item), _POLICY_WINDOW.search(item)
        if limit and window and int(limit[1]) > 0 and int(window[1]) > 0:
            policies.append((int(limit[1]), int(window[1])))
    return tuple(policies)


@lru_cache(maxsize=1000)
def _http_date(text: str | None) -> float | None:
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
