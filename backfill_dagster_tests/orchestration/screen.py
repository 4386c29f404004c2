"""A pseudo-terminal, and what a person would see on it."""

import fcntl
import os
import re
import struct
import termios
import threading
from types import TracebackType
from typing import Self

_SEQUENCE = re.compile(r"\x1b\[(?P<number>\d*)[;\d]*(?P<command>[A-Za-z])")


class Screen:
    """A pseudo-terminal that is read as it is written to; `descriptor` is the end for programs."""

    def __init__(self, columns: int = 120) -> None:
        self._reading, self.descriptor = os.openpty()
        self.resize(columns)
        self._written = bytearray()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def written(self) -> str:
        """All that programs wrote."""
        return self._written.decode()

    def resize(self, columns: int) -> None:
        """Make it so wide."""
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def close(self) -> None:
        """Stop reading, when all that was written has been read."""
        if self._thread.is_alive():
            os.close(self.descriptor)
            self._thread.join()
            os.close(self._reading)

    def _read(self) -> None:
        try:
            while piece := os.read(self._reading, 65536):
                self._written += piece
        except OSError:  # the last program has closed it
            return


def frames(written: str) -> list[list[str]]:
    """Return the lines on the screen at its end, and before that whenever a line was about to be taken away."""
    lines, row, column = [""], 0, 0
    seen: list[list[str]] = []
    rest = written
    while rest:
        if match := _SEQUENCE.match(rest):
            rest = rest[match.end() :]
            if match["command"] == "K":
                seen.append(_shown(lines))
                lines[row] = ""
            elif match["command"] == "A":
                row -= int(match["number"])
            elif match["command"] != "m":
                raise AssertionError(f"what does {match[0]!r} do?")
            continue
        char, rest = rest[0], rest[1:]
        if char == "\r":
            column = 0
        elif char == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    return [*seen, _shown(lines)]


def _shown(lines: list[str]) -> list[str]:
    """Return the lines down to the last one that holds anything."""
    stripped = [line.rstrip() for line in lines]
    while stripped and not stripped[-1]:
        stripped.pop()
    return stripped
