"""The right to ask a host: one holder at a time among all runs and processes that share a storage.

A host counts the requests of all of them together. Whoever works on it holds its lease, and hands the limit on in
the state in which it is: tokens that are used up stay used up for the next holder, and a pause goes on.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import platform
import random
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from backfill_dagster.errors import StorageError
from backfill_dagster.network.limits import GateState
from backfill_dagster.network.patience import wait_in_place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from backfill_dagster.network.limits import HostGate
    from backfill_dagster.network.patience import Wait

logger = logging.getLogger(__name__)

# Seconds between two looks at a lease that another has; the first ones come sooner.
FIRST_POLL = 0.05
POLL = 1.0
# A file is rewritten in place, by one write of always the same length: there is no moment at which it is empty
# or longer than what it says.
_FILE_BYTES = 1024
_MAX_HOLDER = 200
_MAX_NAME = 200


class HostLease(Protocol):
    """A lease that is held."""

    async def release(self) -> None:
        """Hand the host's limit on; a lease that was taken several times ends with its last release."""


class HostLeases(Protocol):
    """The leases of all hosts, wherever they are kept."""

    async def take(self, gate: HostGate) -> HostLease | None:
        """Take the lease of the gate's host, whose limit the gate then takes over; None if another has it.

        Those who share a gate share its lease, since the gate holds them to one limit already.
        """

    async def holder(self, host: str) -> str:
        """Say who had the lease last, for a message."""


@asynccontextmanager
async def hold_host(
    leases: HostLeases,
    gate: HostGate,
    *,
    wait: Wait = wait_in_place,
    give_up: Callable[[], bool] = lambda: False,
) -> AsyncIterator[bool]:
    """Hold the lease of the gate's host, waiting for it until `give_up()`; gives whether it is held."""
    pause = FIRST_POLL
    while (lease := await leases.take(gate)) is None:
        if give_up():
            yield False
            return
        if pause == FIRST_POLL:
            logger.info("%s: waiting until %s has done with it", gate.host, await leases.holder(gate.host))
        await wait(partial(random.uniform, 0.5 * pause, 1.5 * pause))
        pause = min(2 * pause, POLL)
    try:
        yield True
    finally:
        await lease.release()


class LocalHostLeases:
    """Leases as locks on files of one folder; `holder` names this run to others.

    The lock is the operating system's: it is gone with the process that holds it, however that ends. A
    process that ended without handing on may have used up every token just before, so that the next holder
    begins with none.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        self._folder = folder
        self._holder = f"{holder[:_MAX_HOLDER]} (process {os.getpid()} on {platform.node()[:_MAX_HOLDER]})"

    async def take(self, gate: HostGate) -> HostLease | None:
        """Take the lease of the gate's host; None if another has it. Raises StorageError."""
        path = self._path(gate.host)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            key = path.resolve()
            with _registry.lock:
                held = _registry.held.get(key)
                if held is None:
                    held = _HeldFile.lock(path, gate, self._holder)
                    if held is None:
                        return None
                    _registry.held[key] = held
                elif held.gate is not gate:
                    return None
                held.count += 1
        except OSError as error:
            raise StorageError(f"the lease {path} cannot be taken: {error}") from error
        return _LocalLease(key)

    async def holder(self, host: str) -> str:
        """Say who had the lease last, for a message."""
        try:
            content = _parse(self._path(host).read_bytes())
        except OSError:
            content = None
        return content.holder if content and content.holder else "another run"

    def _path(self, host: str) -> Path:
        # Percent-encoded, and with a suffix, no host can be a path or a folder.
        return self._folder / f"{quote(host, safe='')[:_MAX_NAME]}.lease"


@dataclass(frozen=True, slots=True)
class _LocalLease:
    key: Path

    async def release(self) -> None:
        with _registry.lock:
            held = _registry.held.get(self.key)
            if held is None:  # this is a fork of the process that holds it
                return
            held.count -= 1
            if held.count == 0:
                del _registry.held[self.key]
                held.hand_on()


@dataclass(slots=True)
class _HeldFile:
    """The locked file of one host, shared by all of this process who ask the host through one gate."""

    descriptor: int
    gate: HostGate
    holder: str
    count: int = 0

    @classmethod
    def lock(cls, path: Path, gate: HostGate, holder: str) -> _HeldFile | None:
        """Lock the file and put the gate into the state that it names; None if another process has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.pread(descriptor, _FILE_BYTES, 0)
            if found:
                gate.resume(_state_to_resume(found))
            held = cls(descriptor, gate, holder)
            held.write(handed_on=False)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        gate.watch(held.note_park)
        return held

    def note_park(self) -> None:
        """Write the pause down at once: it must outlive this process, whatever becomes of it."""
        self._try_to_write(handed_on=False)

    def hand_on(self) -> None:
        """Leave the gate's state to the next holder, and the file."""
        self.gate.unwatch(self.note_park)
        self._try_to_write(handed_on=True)
        os.close(self.descriptor)

    def write(self, *, handed_on: bool) -> None:
        state = self.gate.state()
        content = {
            "holder": self.holder,
            "handed_on": handed_on,
            "at": state.at,
            "tokens": state.tokens,
            "parked_until": state.parked_until,
        }
        os.pwrite(self.descriptor, json.dumps(content).encode().ljust(_FILE_BYTES), 0)

    def _try_to_write(self, *, handed_on: bool) -> None:
        try:
            self.write(handed_on=handed_on)
        except OSError as error:
            # What is in the file makes the next holder more careful than it need be, and costs no more.
            logger.warning("%s: the state of its limit cannot be written: %s", self.gate.host, error)


@dataclass(frozen=True, slots=True)
class _Content:
    holder: str
    handed_on: bool
    state: GateState


def _parse(content: bytes) -> _Content | None:
    """Read what a file says; None if it cannot be made out."""
    try:
        found = json.loads(content)
        state = GateState(
            at=float(found["at"]),
            tokens=float(found["tokens"]),
            parked_until=None if found["parked_until"] is None else float(found["parked_until"]),
        )
        numbers = (state.at, state.tokens, state.parked_until or 0.0)
        if not all(math.isfinite(number) for number in numbers):
            return None
        return _Content(str(found["holder"]), found["handed_on"] is True, state)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _state_to_resume(content: bytes) -> GateState:
    found = _parse(content)
    if found is not None and found.handed_on:
        return found.state
    return GateState(at=time.time(), tokens=0, parked_until=found.state.parked_until if found else None)


class _Registry:
    """The leases that this process holds: a lock on a file tells processes apart, not those within one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[Path, _HeldFile] = {}

    def forget(self) -> None:
        """Let go, in a forked process, of what its parent holds, so that its end alone frees it."""
        for held in self.held.values():
            os.close(held.descriptor)
        self.held.clear()
        # Another thread may have held it at the moment of the fork, and will never let go of it here.
        self.lock = threading.Lock()


_registry = _Registry()
os.register_at_fork(after_in_child=_registry.forget)
