"""Whether this process and its workers are at work at all: what there is to see of a step that counts nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

# Of one core: far more than waiting takes, and far less than any work.
_BUSY_SHARE = 0.05


class ProcessorUse:
    """Tells, from one look to the next, whether this process or any that it has begun has used the processor."""

    def __init__(self) -> None:
        self._seconds = processor_seconds()
        self._at = time.monotonic()
        self.busy_looks = 0

    def look(self) -> int:
        """Return how many looks so far have found them at work since the look before."""
        seconds, at = processor_seconds(), time.monotonic()
        # A child that has ended takes its share with it, which is a sign of life too.
        if abs(seconds - self._seconds) > _BUSY_SHARE * (at - self._at):
            self.busy_looks += 1
        self._seconds, self._at = seconds, at
        return self.busy_looks


def processor_seconds() -> float:
    """Return the processor time of this process and of what it has begun, in seconds; 0 for those where unknown."""
    return time.process_time() + sum(map(_seconds_of, _descendants()))


def _descendants() -> list[int]:
    """Return the living children, and theirs: workers are children of the process that they are forked off."""
    found: list[int] = []
    parents = ["self"]
    while parents:
        children = _children_of(parents.pop())
        found += children
        parents += map(str, children)
    return found


def _children_of(process: str) -> list[int]:
    found: list[int] = []
    try:
        for listed in Path(f"/proc/{process}/task").glob("*/children"):
            found.extend(map(int, listed.read_text().split()))
    except (OSError, ValueError):
        return found  # it, or a thread of it, has ended: the next look is another one
    return found


def _seconds_of(process: int) -> float:
    try:
        # What follows the name, which may have spaces and brackets in it, begins with the third field.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
