"""Files of JSON in which every byte counts: what is said, its digest, and apart from it when and by whom.

A file that is not exactly what its own contents would be written as again was changed by somebody.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backfill_dagster.errors import StorageError

if TYPE_CHECKING:
    from backfill_dagster.storage import StoredFile, StudyStorage


@dataclass(frozen=True, slots=True)
class Told:
    """What such a file says (`content`), and how it came about (`made`), which is another each time."""

    content: dict[str, Any]
    made: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex: the same for the same content."""
        return _digest(self.content)

    def to_bytes(self) -> bytes:
        """Write the file."""
        told = {
            "content": self.content,
            "content_sha256": self.digest,
            "made": self.made,
            "made_sha256": _digest(self.made),
        }
        return json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Told:
        """Read a file; raises ValueError if it is not the very bytes that `to_bytes` wrote."""
        try:
            told = json.loads(data)
            read = cls(told["content"], told["made"])
            written = read.to_bytes()
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it is not in its form: {error!r}") from None
        if written != data:
            raise ValueError("it was changed after it was written")
        return read


def read_told(storage: StudyStorage, key: str) -> Told:
    """Read a stored file; raises StorageError if it is not there or not what was written."""
    try:
        return Told.from_bytes(storage.read_bytes(key))
    except ValueError as error:
        raise StorageError(f"{storage.where(key)} cannot be believed: {error}") from error


def write_told(storage: StudyStorage, key: str, told: Told) -> StoredFile:
    """Store a file."""
    return storage.write_bytes(key, told.to_bytes())


def _digest(told: dict[str, Any]) -> str:
    # As it stands in the file, so that one can check it with two lines of any language.
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
