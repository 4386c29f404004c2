"""What all studies of a process share: the hosts' limits, because hosts are shared, and the right to run a study."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr

from backfill_dagster.config.processing import Processing
from backfill_dagster.connections import host_gates
from backfill_dagster.orchestration.tags import PARENT_TAG
from backfill_dagster.stores.run_lock import HeldRunLock, run_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    A run that does a whole study, or a purge, has it alone; runs of single stages share it.
    """

    _held: dict[str, HeldRunLock] = PrivateAttr(default_factory=dict)
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
                for held in self._held.values():
                    held.release()
                self._held.clear()

    def at_end(self, finish: Callable[[], object]) -> None:
        """Have this called when the run is over, while it still has what it has taken."""
        self._at_end.callback(finish)

    def take(self, study: Study, run_id: str, retry_of: str | None = None) -> None:
        """Take the study for this run alone; raises StudyBusyError naming the run that has it, or StorageError.

        If it was the run that this one is a retry of, and no lock is gone with its process, it is waited for.
        """
        if study.name in self._held:
            return
        dead = None if retry_of is None else _run_of(retry_of)
        self._held[study.name] = _lock(study, _signature(run_id), alone=True, dead=dead)

    def share(self, study: Study, run: dg.DagsterRun) -> None:
        """Keep whole runs and purges of the study out while this run lasts; raises like `take`.

        A stage of a whole run is covered by what that has taken.
        """
        # The tag alone does not say so: a run that is executed again has it from the one before.
        if study.name in self._held:
            return
        if _signature(run.tags.get(PARENT_TAG)) == run_lock(study.location).signature():
            return
        self._held[study.name] = _lock(study, _signature(run.run_id), alone=False)


def is_locked(study: Study) -> bool:
    """Tell whether a live run has the study, alone or with others."""
    return run_lock(study.location).is_held()


def _lock(study: Study, signature: str, *, alone: bool, dead: str | None = None) -> HeldRunLock:
    lock = run_lock(study.location)
    held = lock.take(signature, alone=alone, dead=dead)
    if held is None:
        holder = lock.signature() or "runs of its single stages"
        raise StudyBusyError(
            description=f"{study.name} is being run by {holder}; wait for it, or cancel it first",
            allow_retries=False,
        )
    return held


def _signature(run_id: str | None) -> str:
    return f"{_run_of(run_id)}{os.getpid()})"


def _run_of(run_id: str | None) -> str:
    return f"run {run_id} (process "
