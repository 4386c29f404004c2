"""Who works on a study: one run that has it alone, or any number that share it."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from backfill_dagster.errors import StorageError
from backfill_dagster.stores.location import S3Folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill_dagster.stores.location import Location
    from backfill_dagster.stores.s3_lease import HeldLease

logger = logging.getLogger(__name__)

_NAME = ".lock"
# Others hold it for a moment just to see whether they could.
_PROBE_SECONDS = 0.5
# A lease of a process that is gone has run out by then.
_RUNS_OUT_SECONDS = 65.0
_LOOK_AGAIN_SECONDS = 2.0


class HeldRunLock(Protocol):
    """The right to work on a study."""

    def release(self) -> None:
        """Let go of it."""


class RunLock(Protocol):
    """A study's lock; all methods raise StorageError."""

    def take(self, signature: str, *, alone: bool, dead: str | None = None) -> HeldRunLock | None:
        """Take it, and sign it if it is taken alone; None if others are in the way.

        Who signed with what begins with `dead` is known to be gone; where it has the lock still, that is waited out.
        """

    def is_held(self) -> bool:
        """Tell whether anybody has it."""

    def signature(self) -> str:
        """Return the signature of whoever took it alone last; empty if others have shared it since."""


def run_lock(location: Location) -> RunLock:
    """Return the lock of the study at a place."""
    return S3RunLock(location) if isinstance(location, S3Folder) else LocalRunLock(location)


class LocalRunLock:
    """The operating system's lock on a file: it is gone with the process that holds it, however that ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def take(self, signature: str, *, alone: bool, dead: str | None = None) -> HeldRunLock | None:  # noqa: ARG002
        """Take it, and sign it if it is taken alone; None if others are in the way."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError.unwritable(self._path, error) from error
        deadline = time.monotonic() + _PROBE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_PROBE_SECONDS / 10)
                    continue
                os.close(descriptor)
                return None
            # Whoever signed it last had it alone, and has let go.
            _sign(descriptor, signature if alone else "")
            return _Descriptor(descriptor)

    def is_held(self) -> bool:
        """Tell whether anybody has it."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def signature(self) -> str:
        """Return the signature of whoever took it alone last; empty if others have shared it since."""
        try:
            return self._path.read_text(encoding="utf-8").strip()
        except OSError:
            return ""


class _Descriptor:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


def _sign(descriptor: int, text: str) -> None:
    with suppress(OSError):  # the lock holds all the same; only its holder cannot be named
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        os.utime(descriptor)


@contextmanager
def lease_errors(lease: object) -> Iterator[None]:
    """Say which lease it was that S3 did not give."""
    from backfill_dagster.stores.s3_errors import s3_errors

    with s3_errors(f"{lease} cannot be taken"):
        yield


class _StoppedByLoss:
    """Ends a run that is no longer alone: after a pause, another may be at work on what it has not finished."""

    def doubted(self, held: HeldLease) -> None:
        """Wait: nothing is written meanwhile."""

    def confirmed(self, held: HeldLease) -> None:
        """Go on."""

    def lost(self, held: HeldLease) -> None:
        """Interrupt the process as Ctrl-C does, so that all is left in order."""
        logger.error("%s was lost to another run, and this one ends; run the same again to go on", held)
        os.kill(os.getpid(), signal.SIGINT)


class S3RunLock:
    """A lease in S3: a process that dies has it for a minute longer, until it runs out."""

    def __init__(self, folder: S3Folder) -> None:
        # boto3 takes longer to import than all else here, and most studies are stored on a disk.
        from backfill_dagster.stores.s3 import lease_at

        self._lease = lease_at(folder / _NAME)

    def take(self, signature: str, *, alone: bool, dead: str | None = None) -> HeldRunLock | None:
        """Take it, and sign it if it is taken alone; None if others are in the way."""
        deadline = time.monotonic() + _RUNS_OUT_SECONDS
        while True:
            with lease_errors(self._lease):
                held = self._lease.take(signature, alone=alone, watcher=_StoppedByLoss())
            if held is not None:
                held.guard()
                return held
            if dead is None or not self.signature().startswith(dead) or time.monotonic() > deadline:
                return None
            time.sleep(_LOOK_AGAIN_SECONDS)

    def is_held(self) -> bool:
        """Tell whether anybody has it."""
        with lease_errors(self._lease):
            return bool(self._lease.read().holders)

    def signature(self) -> str:
        """Return the signature of whoever took it alone last; empty if others have shared it since."""
        with lease_errors(self._lease):
            return self._lease.read().last
