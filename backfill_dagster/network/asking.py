"""Asks one host until it gives an answer that is of use: in its turn, under its lease, and again after failures."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from backfill_dagster.errors import BackfillError
from backfill_dagster.network.answers import BadAnswerError
from backfill_dagster.network.backoff import full_jitter
from backfill_dagster.network.http import RequestFailedError, RequestFault
from backfill_dagster.network.leases import hold_host
from backfill_dagster.network.limits import HostParkedError
from backfill_dagster.network.patience import RunOverError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from backfill_dagster.network.http import Answer
    from backfill_dagster.network.leases import HostLeases
    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.network.patience import Patience
    from backfill_dagster.network.turns import Turns

# What another try may mend.
_PASSING = frozenset({RequestFault.UNREACHABLE, RequestFault.TIMED_OUT, RequestFault.TRUNCATED})
_MAX_SHOWN = 300
# Messages are kept for longer than accounts, and what servers say, or a URL, may name some.
_DID = re.compile(r"did(?::|%3[aA])[a-z]+(?::|%3[aA])[a-zA-Z0-9._:%-]*")

_Read = TypeVar("_Read")


class NoAnswerError(BackfillError):
    """A host gave no answer that is of use; the message names the host and says what was seen."""


@dataclass(frozen=True, slots=True)
class PoliteHost:
    """One host, and how it is asked: `max_retries` tries after the first, `retry_base_seconds` for `full_jitter`."""

    turns: Turns
    gate: HostGate
    leases: HostLeases | None
    patience: Patience
    max_retries: int
    retry_base_seconds: float
    jitter: Callable[[], float] = random.random

    async def ask(
        self, url: str, params: Mapping[str, str], *, max_bytes: int, read: Callable[[bytes], _Read]
    ) -> _Read:
        """Return what `read` makes of the body of a 200; what it refuses by BadAnswerError is asked for again.

        Raises NoAnswerError, and RunOverError.
        """
        failures = 0
        while True:
            try:
                async with self.turn():
                    answer = await self.turns.get(
                        self.gate, url, params=params, max_bytes=max_bytes, patience=self.patience
                    )
                if answer.status == 200:
                    return read(answer.body)
                reason, passing = _refusal(answer), answer.status >= 500
            except HostParkedError as error:
                raise NoAnswerError(str(error)) from error
            except RequestFailedError as error:
                reason, passing = str(error), error.kind in _PASSING
            except BadAnswerError as error:
                reason, passing = str(error), True
            failures += 1
            if not passing or failures > self.max_retries:
                raise NoAnswerError(_DID.sub("did:…", f"{self.gate.host}: {reason}"))
            self.turns.metrics.retried(self.gate.host)
            await self.pause(failures)

    async def pause(self, failures: int) -> None:
        """Wait after the so many-th failure, counted from 1."""
        await asyncio.sleep(full_jitter(failures, self.retry_base_seconds, self.jitter))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the host's lease; raises RunOverError if the run ends while another process has it."""
        if self.leases is None:
            yield
            return
        run_time = self.patience.run_time
        async with hold_host(self.leases, self.gate, give_up=lambda: run_time.is_over) as held:
            if not held:
                holder = await self.leases.holder(self.gate.host)
                raise RunOverError(
                    f"processing.max_run_minutes is over, and {self.gate.host} is being asked by {holder}"
                )
            yield


def _refusal(answer: Answer) -> str:
    said = " ".join(answer.body[:_MAX_SHOWN].decode("utf-8", "replace").split())
    return f"HTTP {answer.status}: {said}" if said else f"HTTP {answer.status}"
