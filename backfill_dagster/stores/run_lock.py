"""Who works on a study: one run that has it alone, or any number that share it."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from backfill_dagster.errors import StorageError
from backfill_dagster.stores.location import S3Folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backfill_dagster.stores.location import Location

_NAME = ".lock"
# Others hold it for a moment just to see whether they could.
_PROBE_SECONDS = 0.5


class HeldRunLock(Protocol):
    """The right to work on a study."""

    def release(self) -> None:
        """Let go of it."""


class RunLock(Protocol):
    """A study's lock; all methods raise StorageError."""

    def take(self, signature: str, *, alone: bool) -> HeldRunLock | None:
        """Take it, and sign it if it is taken alone; None if others are in the way."""

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

    def take(self, signature: str, *, alone: bool) -> HeldRunLock | None:
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
def s3_errors(lease: object) -> Iterator[None]:
    """Say which lease it was that S3 did not give."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{lease} cannot be taken: {error}") from error


class S3RunLock:
    """A lease in S3: a process that dies has it for a minute longer, until it runs out."""

    def __init__(self, folder: S3Folder) -> None:
        # boto3 takes longer to import than all else here, and most studies are stored on a disk.
        from backfill_dagster.stores.s3 import s3_client
        from backfill_dagster.stores.s3_lease import S3Lease

        place = folder / _NAME
        self._lease = S3Lease(s3_client(place), place.bucket, place.prefix)

    def take(self, signature: str, *, alone: bool) -> HeldRunLock | None:
        """Take it, and sign it if it is taken alone; None if others are in the way."""
        with s3_errors(self._lease):
            return self._lease.take(signature, alone=alone)

    def is_held(self) -> bool:
        """Tell whether anybody has it."""
        with s3_errors(self._lease):
            return bool(self._lease.read().holders)

    def signature(self) -> str:
        """Return the signature of whoever took it alone last; empty if others have shared it since."""
        with s3_errors(self._lease):
            return self._lease.read().last
