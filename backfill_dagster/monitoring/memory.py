"""How much memory a process has, and how much it may have, as Linux tells; elsewhere nothing is told, which is 0."""

from __future__ import annotations

import os
from pathlib import Path

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_MACHINE = Path("/proc/meminfo")
# Of a container, by either version of control groups; without a limit, a word or a number larger than any machine's.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def current_memory() -> int:
    """Return this process's resident memory in bytes."""
    fields = _text(_STATM).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def peak_memory() -> int:
    """Return the most resident memory that this process has had, in bytes.

    Not `ru_maxrss`, which in a spawned process begins with what its parent held.
    """
    return _kilobytes(_STATUS, "VmHWM")


def memory_limit() -> int:
    """Return the bytes that the processes of this machine, or of this container, may have together."""
    limits = [int(text) for path in _LIMITS if (text := _text(path).strip()).isdecimal()]
    machine = _kilobytes(_MACHINE, "MemTotal")
    return min([*limits, machine]) if machine else 0


def _kilobytes(path: Path, field: str) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
