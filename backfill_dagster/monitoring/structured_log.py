"""The structured log: one JSON object a line, to the terminal, to a file, or to both.

A line is written by one call to a descriptor that appends, so that the lines of several processes do not mix. What
cannot be written is lost rather than that a run ends over it, except that the file must open before the run begins.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from backfill_dagster.errors import ConfigError
from backfill_dagster.monitoring.account_names import AccountHashes, hashed_fields, without_accounts
from backfill_dagster.monitoring.events import MESSAGE, Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Every line has these, null where they say nothing; in this order, and before all others.
COMMON_FIELDS = (
    *("timestamp", "level", "event", "message", "backfill", "run_id", "host", "did", "pack", "duration"),
)
_MAX_TEXT = 2_000
_MAX_MESSAGE = 10_000
# Whoever reads a log is in the file's group.
_MODE = 0o640
# Between two looks whether the file was moved away, as log rotation does; seconds.
_LOOK_SECONDS = 1.0


class LogFile:
    """A file that lines are added to, made anew if it was moved away; raises ConfigError if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor = self._open()
        self._next_look = time.monotonic() + _LOOK_SECONDS
        self._is_torn = False
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Add a line, which ends in a newline."""
        with self._lock:
            if self._descriptor < 0:
                return
            try:
                self._follow()
                if self._is_torn:
                    # The disk was full in the middle of a line: what follows is not to be glued to it.
                    line = b"\n" + line
                written = os.write(self._descriptor, line)
                self._is_torn = written < len(line)
                self.lost += self._is_torn
            except OSError:
                self.lost += 1

    def close(self) -> None:
        """Close it; what is written afterwards is lost."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not to hang on a named pipe that nobody reads.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self.path, flags, _MODE)
            kind = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind)):
                os.close(descriptor)
                raise OSError(errno.EINVAL, "is no plain file")  # noqa: TRY301
        except OSError as error:
            raise ConfigError(
                f"monitoring.log_file = {str(self.path)!r}: cannot be written: {error.strerror}; name another file, or "
                "let this user write there"
            ) from error
        return descriptor

    def _follow(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        try:
            there, ours = self.path.stat(), os.fstat(self._descriptor)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        except OSError:
            return  # where it was cannot be looked into; it is written to all the same
        try:
            descriptor = self._open()
        except ConfigError:
            return  # what was moved away takes the lines for now
        os.close(self._descriptor)
        self._descriptor = descriptor


class StructuredLog:
    """Writes the events of one run of a study as lines of JSON, to any number of sinks that take a line each."""

    def __init__(
        self,
        backfill: str,
        run_id: str | None,
        *,
        level: str = "INFO",
        sinks: tuple[Callable[[bytes], None], ...] = (),
        hashes: AccountHashes | None = None,
        anonymous: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._backfill = backfill
        self._run_id = run_id
        self._level = logging.getLevelNamesMapping()[level]
        self._sinks = sinks
        self._hashes = hashes
        self._anonymous = anonymous
        self._clock = clock
        # The latest second, and how it is written: many lines have the same.
        self._second = (-1, "")

    @property
    def is_written(self) -> bool:
        """Whether lines go anywhere."""
        return bool(self._sinks)

    def emit(self, event: Event, **fields: Any) -> None:
        """Write an event, unless it weighs less than the study's `log_level`."""
        self.write(event.level, event.name, event.message, fields)

    def message(self, level: int, text: str, *, event: Event = MESSAGE, **fields: Any) -> None:
        """Write what was logged in words."""
        self.write(level, event.name, text, fields)

    def write(self, level: int, event: str, message: str, fields: dict[str, Any]) -> None:
        """Write one line."""
        if level < self._level or not self._sinks:
            return
        if self._hashes is not None:
            message, fields = self._hashes.text(message), hashed_fields(fields, self._hashes)
        elif self._anonymous:
            message = without_accounts(message)
        # Cut only now: half a name would not have been known for one.
        fields = {
            name: _bounded(value) if isinstance(value, str | float) else value
            for name, value in fields.items()
            if value is not None
        }
        line = {
            "timestamp": self._timestamp(),
            "level": _LEVELS.get(level) or logging.getLevelName(level),
            "event": event,
            "message": _cut(message, _MAX_MESSAGE),
            "backfill": self._backfill,
            "run_id": self._run_id,
            "host": fields.pop("host", None),
            "did": fields.pop("did", None),
            "pack": fields.pop("pack", None),
            "duration": fields.pop("duration", None),
            **fields,
        }
        content = _json(line)
        for sink in self._sinks:
            sink(content)

    def _timestamp(self) -> str:
        milliseconds = int(self._clock() * 1000)
        second = milliseconds // 1000
        if second != self._second[0]:
            self._second = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second[1]}.{milliseconds % 1000:03}Z"


def _bounded(value: str | float) -> str | float:
    """Cut what a server may have made long."""
    return _cut(value, _MAX_TEXT) if isinstance(value, str) else round(value, 6)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _json(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, default=str, option=_OPTIONS)
    except (TypeError, ValueError):  # a lone surrogate or a number beyond all bounds, which a server made
        return orjson.dumps(_plain(line), default=str, option=_OPTIONS)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, int) and value.bit_length() > _MOST_BITS else value


_LEVELS = {
    level: name for name, level in logging.getLevelNamesMapping().items() if name not in ("WARN", "FATAL")
}
# Of a number that JSON's readers take for one.
_MOST_BITS = 63
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
