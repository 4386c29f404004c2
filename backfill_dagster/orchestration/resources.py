"""What all studies of a process share: the hosts' limits, because hosts are shared, and the right to run a study."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr

from backfill_dagster.config.processing import Processing
from backfill_dagster.connections import host_gates
from backfill_dagster.errors import StorageError
from backfill_dagster.orchestration.tags import PARENT_TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backfill_dagster.config.study import Study
    from backfill_dagster.network.limits import HostGates


class StudyBusyError(dg.Failure):
    """Another live run holds the study."""


class LimitsResource(dg.ConfigurableResource["LimitsResource"]):
    """The pace of every host, shared by all studies and stages of this process."""

    def gates(self) -> HostGates:
        """Return the process's registry of host limits."""
        return _GATES


_GATES = host_gates(Processing())


class StudyLockResource(dg.ConfigurableResource["StudyLockResource"]):
    """Keeps the runs of a study out of each other's way.

    A run that does a whole study, or a purge, has it alone; runs of single stages share it. The lock is the operating
    system's, on a file in the study's storage: it is gone with the process that holds it, however that ends.
    """

    _held: dict[str, int] = PrivateAttr(default_factory=dict)
    _at_end: ExitStack = PrivateAttr(default_factory=ExitStack)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[StudyLockResource]:  # noqa: ARG002
        """Release at the run's end what was taken in it."""
        try:
            yield self
        finally:
            try:
                self._at_end.close()
            finally:
                for descriptor in self._held.values():
                    os.close(descriptor)
                self._held.clear()

    def at_end(self, finish: Callable[[], object]) -> None:
        """Have this called when the run is over, while it still has what it has taken."""
        self._at_end.callback(finish)

    def take(self, study: Study, run_id: str) -> None:
        """Take the study for this run alone; raises StudyBusyError naming the run that has it, or StorageError."""
        if study.name in self._held:
            return
        self._held[study.name] = descriptor = _lock(study, fcntl.LOCK_EX)
        _sign(descriptor, _signature(run_id))

    def share(self, study: Study, run: dg.DagsterRun) -> None:
        """Keep whole runs and purges of the study out while this run lasts; raises like `take`.

        A stage of a whole run is covered by what that has taken.
        """
        # The tag alone does not say so: a run that is executed again has it from the one before.
        if study.name in self._held or _signature(run.tags.get(PARENT_TAG)) == _read(_lock_file(study)):
            return
        self._held[study.name] = descriptor = _lock(study, fcntl.LOCK_SH)
        # Whoever signed it last had it alone, and has let go.
        _sign(descriptor, "")


def is_locked(study: Study) -> bool:
    """Tell whether a live run has the study, alone or with others."""
    try:
        descriptor = os.open(_lock_file(study), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"{_lock_file(study)} cannot be read: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_file(study: Study) -> Path:
    return study.root / ".lock"


def _lock(study: Study, kind: int) -> int:
    path = _lock_file(study)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError.unwritable(path, error) from error
    # `is_locked` holds it for a moment itself.
    deadline = time.monotonic() + _PROBE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_PROBE_SECONDS / 10)
                continue
            os.close(descriptor)
            raise StudyBusyError(
                description=f"{study.name} is being run by {_holder(path)}; wait for it, or cancel it first",
                allow_retries=False,
            ) from None
        return descriptor


def _signature(run_id: str | None) -> str:
    return f"run {run_id} (process {os.getpid()})"


def _sign(descriptor: int, text: str) -> None:
    with suppress(OSError):  # the lock holds all the same; only its holder cannot be named
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        os.utime(descriptor)


def _holder(path: Path) -> str:
    return _read(path) or "runs of its single stages"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


_PROBE_SECONDS = 0.5
