"""The closed set of errors that this package raises on purpose.

Each says what to do next in its message. Anything else that escapes is a defect.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

# How libraries that are not Python's name an error of the operating system, somewhere in their own words.
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "choose another storage.path",
    errno.EACCES: "let this user write there, or choose another storage.path",
    errno.EPERM: "let this user write there, or choose another storage.path",
    errno.ENOTDIR: "move the file away that stands where a folder must be, or choose another storage.path",
    errno.EEXIST: "move the file away that stands where a folder must be, or choose another storage.path",
}


class BackfillError(Exception):
    """Base of every error below: catch it to catch them all."""


class ConfigError(BackfillError):
    """A backfill's YAML says something that cannot be right; the message names file, field and value."""


class SourceError(BackfillError):
    """The source of DIDs cannot be read, or holds nothing to collect."""


class DirectoryUnreachableError(BackfillError):
    """The PLC directory answers nobody, so that nothing can be said about any account."""


class StorageError(BackfillError):
    """Stored files cannot be read or written, or do not hold what they must."""

    @classmethod
    def unwritable(cls, path: Path | str, error: Exception) -> Self:
        """Make the error for a file or folder that cannot be changed, of what the attempt raised."""
        number = _os_error(error)
        reason = str(error) if number is None else os.strerror(number)
        advice = _ADVICE.get(number or 0, "mend that")
        return cls(
            f"{path} cannot be written: {reason}; {advice}, then run the same again: what is stored is whole"
        )


class WorkerLostError(BackfillError):
    """A worker process was ended from outside, most likely for want of memory."""


class ReconciliationError(BackfillError):
    """Counts that must agree do not: a defect of this package, never of the data."""


def first_known(group: BaseExceptionGroup[BaseException]) -> BackfillError | None:
    """Return the first of our own errors in a group of tasks' errors; None if it holds none."""
    known: BaseException | None = group.subgroup(BackfillError)
    while isinstance(known, BaseExceptionGroup):
        known = known.exceptions[0]
    return known if isinstance(known, BackfillError) else None


def _os_error(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    named = _OS_ERROR.search(str(error))
    return int(named[1] or named[2]) if named else None
