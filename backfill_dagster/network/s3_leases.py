"""The leases of hosts as objects in S3, for processes on any number of machines; see `leases`."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from botocore.exceptions import BotoCoreError, ClientError

from backfill_dagster.errors import StorageError
from backfill_dagster.network.limits import GateState
from backfill_dagster.stores.s3 import lease_at
from backfill_dagster.stores.s3_errors import s3_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backfill_dagster.network.leases import HostLease
    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.stores.location import S3Folder
    from backfill_dagster.stores.s3_lease import HeldLease, LeaseState, S3Lease

logger = logging.getLogger(__name__)

_MAX_NAME = 200
# Beyond any time in seconds.
_MAX_NUMBER = 1e12
# Between two tries to have a lost lease again.
_POLL_SECONDS = 1.0


class S3HostLeases:
    """Leases below a place in S3; `holder` names this run to others.

    A process that dies keeps its leases for a minute, until they run out. It may have used up every token just before,
    so that the next holder begins with none. One that was held up, or cannot reach S3, for so long asks a host nothing
    more until it has the lease again.
    """

    def __init__(self, folder: S3Folder, holder: str) -> None:
        self._folder = folder
        self._holder = f"{holder[:_MAX_NAME]} (process {os.getpid()} on {platform.node()[:_MAX_NAME]})"

    async def take(self, gate: HostGate) -> HostLease | None:
        """Take the lease of the gate's host; None if another has it. Raises StorageError."""
        lease = self._lease(gate.host)
        place = _places.of(str(lease))
        async with place.turn:
            if place.held is None:
                keeper = _Keeper(place, gate, lease, self._holder)
                held = await _asked(lease, lambda: lease.take(self._holder, watcher=keeper))
                if held is None:
                    return None
                _go_on(gate, held)
                place.begin(gate, held)
            elif place.gate is not gate:
                return None
            place.count += 1
        return place

    async def holder(self, host: str) -> str:
        """Say who had the lease last, for a message."""
        lease = self._lease(host)
        state = await _asked(lease, lease.read)
        return state.last or "another run"

    def _lease(self, host: str) -> S3Lease:
        # Percent-encoded, and with a suffix, no host can be a path or a folder.
        return lease_at(self._folder / f"{quote(host, safe='')[:_MAX_NAME]}.lease")


async def _asked(lease: S3Lease, work: Any) -> Any:
    try:
        return await asyncio.to_thread(work)
    except (BotoCoreError, ClientError) as error:
        raise s3_error(f"the lease {lease} cannot be taken", error) from error


@dataclass(slots=True, eq=False)
class _Place:
    """What this process has of one host: a lease tells processes apart, not those within one."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    held: HeldLease | None = None
    gate: HostGate | None = None
    count: int = 0
    # Of what is held and by which gate, which the thread of a lost lease changes too.
    change: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, gate: HostGate, held: HeldLease) -> None:
        self.gate, self.held = gate, held
        gate.watch(self.note_park)

    def note_park(self) -> None:
        """Write the pause down at once, beside the event loop: it must outlive this process."""
        if self.held is not None and self.gate is not None:
            _writer.submit(self.held.note, _told(self.gate.state(), self.held.ahead))

    async def release(self) -> None:
        """Hand the host's limit on with the last release."""
        async with self.turn:
            self.count -= 1
            if self.count or self.held is None or self.gate is None:
                return
            with self.change:
                held, gate = self.held, self.gate
                self.held = self.gate = None
                gate.unwatch(self.note_park)
                gate.open()
            await asyncio.to_thread(held.release, _told(gate.state(), held.ahead))


@dataclass(frozen=True, slots=True)
class _Keeper:
    """Lets a host be asked only while its lease is held for sure; has it again when it was lost."""

    place: _Place
    gate: HostGate
    lease: S3Lease
    holder: str

    def doubted(self, held: HeldLease) -> None:
        """Ask nothing more for now."""
        with self.place.change:
            if self.place.held is held:
                self.gate.close()

    def confirmed(self, held: HeldLease) -> None:
        """Go on."""
        with self.place.change:
            if self.place.held is held:
                self.gate.open()

    def lost(self, held: HeldLease) -> None:
        """Ask nothing more until it is held again, with what is left of the limit then."""
        self.doubted(held)
        logger.warning("%s: waiting until the lease is free again", self.gate.host)
        while self.place.held is held:
            again = None
            with suppress(BotoCoreError, ClientError, StorageError):
                again = self.lease.take(self.holder, watcher=self)
            if again is not None and self._has_taken_over(held, again):
                return
            time.sleep(_POLL_SECONDS)

    def _has_taken_over(self, held: HeldLease, again: HeldLease) -> bool:
        with self.place.change:
            if self.place.held is held:
                _go_on(self.gate, again)
                self.place.held = again
                self.gate.open()
                return True
        again.release(_told(self.gate.state(), again.ahead))
        return False


class _Places:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[tuple[str, int], _Place] = {}

    def of(self, name: str) -> _Place:
        # A lock is of one event loop.
        key = (name, id(asyncio.get_running_loop()))
        with self._lock:
            return self._places.setdefault(key, _Place())


_places = _Places()
_writer = ThreadPoolExecutor(1, thread_name_prefix="leases")


def _told(state: GateState, ahead: float) -> dict[str, float | None]:
    """Return a gate's state by the server's clock, which is `ahead` of this machine's by so many seconds."""
    parked_until = None if state.parked_until is None else state.parked_until + ahead
    return {"at": state.at + ahead, "tokens": state.tokens, "parked_until": parked_until}


def _go_on(gate: HostGate, held: HeldLease) -> None:
    """Have a gate go on where the last holder left off; one of which nothing is known begins as it is."""
    if held.found.last or not held.found.was_handed_on:
        gate.resume(_state_to_resume(held.found, held.ahead))


def _state_to_resume(found: LeaseState, ahead: float) -> GateState:
    """Return the limit as it was handed on; with no tokens, and the last pause that was noted, if it was not."""
    parked_until = _number(found.note, "parked_until")
    if parked_until is not None:
        parked_until -= ahead
    at, tokens = _number(found.note, "at"), _number(found.note, "tokens")
    if found.was_handed_on and at is not None and tokens is not None:
        return GateState(at=at - ahead, tokens=tokens, parked_until=parked_until)
    return GateState(at=time.time(), tokens=0, parked_until=parked_until)


def _number(note: Mapping[str, Any], name: str) -> float | None:
    value = note.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MAX_NUMBER:
        return None
    return float(value)
