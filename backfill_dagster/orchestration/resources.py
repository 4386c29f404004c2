"""What all studies of a process share: the hosts' limits, because hosts are shared, and the right to run a study."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr

from backfill_dagster.config import Processing
from backfill_dagster.connections import host_gates
from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill_dagster.config import Study
    from backfill_dagster.network.limits import HostGates


class StudyBusyError(dg.Failure):
    """Another live run holds the study."""


class LimitsResource(dg.ConfigurableResource["LimitsResource"]):
    """The pace of every host, shared by all studies and stages of this process."""

    def gates(self) -> HostGates:
        """Return the process's registry of host limits."""
        return _GATES


_GATES = host_gates(Processing())


class ExclusiveResource(dg.ConfigurableResource["ExclusiveResource"]):
    """Lets one run at a time do a whole study.

    The lock is the operating system's, on a file in the study's storage: it is gone with the process that holds
    it, however that ends.
    """

    _held: dict[str, int] = PrivateAttr(default_factory=dict)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[ExclusiveResource]:  # noqa: ARG002
        """Release at the run's end what was taken in it."""
        try:
            yield self
        finally:
            for descriptor in self._held.values():
                os.close(descriptor)
            self._held.clear()

    def take(self, study: Study, run_id: str) -> None:
        """Take the study for this run; raises StudyBusyError naming the run that has it, or StorageError."""
        if study.name in self._held:
            return
        path = study.root / ".lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError.unwritable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StudyBusyError(
                description=f"{study.name} is being run by {_holder(path)}; wait for it, or cancel it first",
                allow_retries=False,
            ) from None
        self._held[study.name] = descriptor
        with suppress(OSError):  # the lock holds all the same; only its holder cannot be named
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"run {run_id} (process {os.getpid()})".encode(), 0)


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() or "another run"
