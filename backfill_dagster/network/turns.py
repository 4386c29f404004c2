"""Asks hosts: every request goes in the turn of the host that it really goes to, wherever redirects lead.

A redirect ends the turn at one host and begins another one, be it at the same host. The place at the first is
given back before the next is waited for: hosts that lead to each other cannot make requests wait in a circle.
"""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from backfill_dagster.monitoring.study_metrics import unmeasured
from backfill_dagster.network.addresses import host_of
from backfill_dagster.network.http import (
    Answer,
    Download,
    HttpClient,
    RedirectedError,
    RequestFailedError,
    RequestFault,
)
from backfill_dagster.network.leases import hold_host
from backfill_dagster.network.limits import HostParkedError
from backfill_dagster.network.patience import Patience

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from backfill_dagster.monitoring.study_metrics import StudyMetrics
    from backfill_dagster.network.leases import HostLeases
    from backfill_dagster.network.limits import HostGate, HostGates

MAX_REDIRECTS = 5
# To how many others a host may lead, all its redirects together: each of them costs a limit and a lease.
MAX_OTHER_HOSTS = 100

# How requests end, besides the faults of `RequestFault`.
SUCCESS, REDIRECT, RATE_LIMITED = "success", "redirect", "rate_limited"
CLIENT_ERROR, SERVER_ERROR, CANCELLED = "client_error", "server_error", "cancelled"
OUTCOMES = frozenset({*RequestFault, SUCCESS, REDIRECT, RATE_LIMITED, CLIENT_ERROR, SERVER_ERROR, CANCELLED})

_Answered = TypeVar("_Answered", Answer, Download)
_PATIENT = Patience()


class Turns:
    """The one way to ask a host; of use on the event loop of its HTTP client.

    A host that a redirect leads to, and that nobody asked before, is asked at `rate` (requests per second)
    with at most `in_flight` requests at once. Its lease is waited for as long as an answer is.
    """

    def __init__(
        self,
        http: HttpClient,
        gates: HostGates,
        leases: HostLeases | None,
        *,
        rate: float,
        in_flight: int,
        metrics: StudyMetrics | None = None,
    ) -> None:
        self.http = http
        self.metrics = metrics or unmeasured()
        self._gates = gates
        self._leases = leases
        self._rate = rate
        self._in_flight = in_flight
        self._led_to: dict[str, set[str]] = {}
        # Until when the lease of a host that others lead to is waited for; those who come later do not wait.
        self._waiting_until: dict[str, float] = {}

    async def get(
        self,
        gate: HostGate,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        max_bytes: int,
        patience: Patience = _PATIENT,
    ) -> Answer:
        """Get a small answer in the turn of the gate's host, whose lease is the caller's to hold.

        A 429 is answered by another try after the pause; it is returned when there were such answers, or will
        have been at the pause's end, for longer than `patience.max_park`. Raises HostParkedError if a host's
        pauses took that long before, RunOverError, and RequestFailedError.
        """

        async def ask(url: str, params: Mapping[str, str] | None) -> Answer:
            return await self.http.get(url, params=params, max_bytes=max_bytes)

        return await self._follow(gate, url, params, ask, patience)

    async def download(
        self,
        gate: HostGate,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        to: Path,
        max_bytes: int,
        total_timeout: float,
        patience: Patience = _PATIENT,
    ) -> Download:
        """Stream the body of a 200 into a file, in the turn of the gate's host; else like `get`."""

        async def ask(url: str, params: Mapping[str, str] | None) -> Download:
            return await self.http.download(
                url, params=params, to=to, max_bytes=max_bytes, total_timeout=total_timeout
            )

        return await self._follow(gate, url, params, ask, patience)

    async def _follow(
        self,
        first: HostGate,
        url: str,
        params: Mapping[str, str] | None,
        ask: Callable[[str, Mapping[str, str] | None], Awaitable[_Answered]],
        patience: Patience,
    ) -> _Answered:
        gate, target = first, url
        for _ in range(MAX_REDIRECTS + 1):
            lease: AbstractAsyncContextManager[None] = (
                nullcontext() if gate is first else self._lease(gate, patience)
            )
            try:
                async with lease:
                    counted = partial(self._count, gate.host, partial(ask, target, params))
                    return await _ask_in_turn(gate, counted, patience)
            except RedirectedError as redirect:
                gate, target, params = self._gate_of(redirect.target, first), redirect.target, None
        raise RequestFailedError(RequestFault.BAD_REDIRECT, f"more than {MAX_REDIRECTS} redirects from {url}")

    async def _count(self, host: str, ask: Callable[[], Awaitable[_Answered]]) -> _Answered:
        """Ask, and count the request with what comes of it."""
        begun, outcome, received = time.monotonic(), CANCELLED, 0
        try:
            answer = await ask()
            outcome = outcome_of(answer.status)
            received = answer.bytes_received if isinstance(answer, Download) else len(answer.body)
        except RedirectedError as redirect:
            outcome = outcome_of(redirect.status)
            raise
        except RequestFailedError as error:
            outcome = error.kind.value
            raise
        finally:
            self.metrics.requests_to(host).ended(outcome, time.monotonic() - begun, received)
        return answer

    def _gate_of(self, url: str, first: HostGate) -> HostGate:
        host = host_of(url)
        if host == first.host:
            return first
        led_to = self._led_to.setdefault(first.host, set())
        if host not in led_to and len(led_to) >= MAX_OTHER_HOSTS:
            raise RequestFailedError(
                RequestFault.BAD_REDIRECT, f"{first.host} leads to more than {MAX_OTHER_HOSTS} other hosts"
            )
        led_to.add(host)
        return self._gates.known_gate(host) or self._gates.gate(
            host, rate=self._rate, in_flight=self._in_flight
        )

    @asynccontextmanager
    async def _lease(self, gate: HostGate, patience: Patience) -> AsyncIterator[None]:
        """Hold the lease of a host that a redirect leads to."""
        if self._leases is None:
            yield
            return
        end = self._waiting_until.setdefault(gate.host, time.monotonic() + self.http.read_timeout)
        turn = hold_host(
            self._leases,
            gate,
            wait=patience.wait,
            give_up=lambda: patience.run_time.is_over or time.monotonic() >= end,
        )
        async with turn as held:
            if not held:
                patience.run_time.check()
                holder = await self._leases.holder(gate.host)
                raise RequestFailedError(
                    RequestFault.BAD_REDIRECT, f"leads to {gate.host}, which is being asked by {holder}"
                )
            self._waiting_until.pop(gate.host, None)
            yield


def outcome_of(status: int) -> str:
    """Name the class of an answer's HTTP status."""
    if status == 429:
        return RATE_LIMITED
    if status >= 500:
        return SERVER_ERROR
    if status >= 400:
        return CLIENT_ERROR
    return REDIRECT if status >= 300 else SUCCESS


async def _ask_in_turn(
    gate: HostGate, ask: Callable[[], Awaitable[_Answered]], patience: Patience
) -> _Answered:
    """Ask one host, after each pause again, and heed what every answer says of its limits."""
    refused_since: float | None = None
    while True:
        await _wait_out_park(gate, patience)
        try:
            async with gate.request(max_park=0):
                answer = await ask()
        except HostParkedError:
            continue  # The pause began while the turn was waited for.
        except RedirectedError as redirect:
            gate.observe(redirect.status, redirect.headers)
            raise
        gate.observe(answer.status, answer.headers)
        if answer.status != 429:
            return answer
        now = time.monotonic()
        refused_since = now if refused_since is None else refused_since
        if max(now + gate.parked_for() - refused_since, gate.limited_for()) > patience.max_park:
            return answer


async def _wait_out_park(gate: HostGate, patience: Patience) -> None:
    patience.run_time.check()
    while (seconds := gate.parked_for()) > 0:
        if gate.limited_for() > patience.max_park:
            raise HostParkedError(gate.host, seconds)
        await patience.wait(lambda: min(gate.parked_for(), patience.run_time.left))
        patience.run_time.check()
