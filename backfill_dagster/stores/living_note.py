"""A note by a process that others read once that process is gone, however it ended."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any, Protocol

from backfill_dagster.errors import StorageError
from backfill_dagster.stores.location import S3Folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backfill_dagster.stores.location import Location
    from backfill_dagster.stores.s3_lease import HeldLease, S3Lease


class LivingNote(Protocol):
    """A note that is held by this process; all methods raise StorageError."""

    def add(self, told: Mapping[str, Any]) -> None:
        """Add to the note; what has a name that is there already takes its place."""

    def close(self) -> None:
        """Hold it no longer."""


def make_living_note(location: Location, key: str, told: Mapping[str, Any]) -> LivingNote:
    """Make a note that nobody else makes, and hold it; raises StorageError."""
    if isinstance(location, S3Folder):
        return _S3Note.make(location, key, told)
    return _LocalNote.make(location / key, told)


def abandoned_note(location: Location, key: str) -> dict[str, Any] | None:
    """Return what a note tells, nothing if it tells nothing; None if a living process holds it."""
    return _abandoned_in_s3(location, key) if isinstance(location, S3Folder) else _abandoned(location / key)


class _LocalNote:
    """Lines of JSON in a file that is locked: the operating system lets go of it with the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def make(cls, path: Path, told: Mapping[str, Any]) -> _LocalNote:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError.unwritable(path, error) from error
        note = cls(path, descriptor)
        note.add(told)
        return note

    def add(self, told: Mapping[str, Any]) -> None:
        try:
            os.write(self._descriptor, json.dumps(told, sort_keys=True, default=str).encode() + b"\n")
        except OSError as error:
            raise StorageError.unwritable(self._path, error) from error

    def close(self) -> None:
        os.close(self._descriptor)


def _abandoned(path: Path) -> dict[str, Any] | None:
    try:
        file = path.open("rb")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        told: dict[str, Any] = {}
        for line in file:
            try:
                told |= json.loads(line)
            except (ValueError, TypeError):
                break  # killed in the middle of a line
        return told


class _S3Note:
    """What the holder of a lease notes in it: it runs out a minute after its process is gone."""

    def __init__(self, held: HeldLease, told: Mapping[str, Any]) -> None:
        self._held = held
        self._told = dict(told)

    @classmethod
    def make(cls, location: S3Folder, key: str, told: Mapping[str, Any]) -> _S3Note:
        from backfill_dagster.stores.run_lock import lease_errors

        lease = _lease(location, key)
        with lease_errors(lease):
            held = lease.take("a run")
        if held is None:
            raise StorageError(f"{lease} is held by another process")
        note = cls(held, {})
        note.add(told)
        return note

    def add(self, told: Mapping[str, Any]) -> None:
        # As JSON has it: times as texts.
        self._told |= json.loads(json.dumps(told, default=str))
        self._held.note(self._told)

    def close(self) -> None:
        self._held.release()


def _abandoned_in_s3(location: S3Folder, key: str) -> dict[str, Any] | None:
    from backfill_dagster.stores.run_lock import lease_errors

    lease = _lease(location, key)
    with lease_errors(lease):
        state = lease.read()
    return None if state.holders else dict(state.note)


def _lease(location: S3Folder, key: str) -> S3Lease:
    # boto3 takes longer to import than all else here, and most studies are stored on a disk.
    from backfill_dagster.stores.s3 import lease_at

    return lease_at(location / key)
