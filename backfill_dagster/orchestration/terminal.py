"""The terminal that a command was started from: lines above, and below them a bar that says how far it is.

A step's own stdout and stderr are files, by which Dagster captures them; so the terminal is kept from before. Lines
and bar go through one console of rich, which takes the bar away for the time of a line.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

_BAR_WIDTH = 20
# What a terminal would take for a command: nothing that a server said must come to that.
_CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if code not in (9, 10)}


class _Console(Console):
    def fit(self) -> None:
        """Take on the terminal's present width; rich by itself asks the standard streams, which are captured."""
        try:
            columns, lines = os.get_terminal_size(self.file.fileno())
        except OSError:
            return
        # A pseudo-terminal may not know its size.
        self.size = ConsoleDimensions(columns or 80, lines or 25)

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
        """Leave the cursor alone: a process that is killed could not bring it back."""
        return False


class Terminal:
    """Writes to a terminal; another way to write to the same one would garble the bar."""

    def __init__(self, stream: TextIO) -> None:
        self._console = _Console(file=stream)
        # Whether all that a run logs to this terminal comes through here.
        self.has_log = False
        self.has_bar = False

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.fit()
        self._console.print(Text(line.translate(_CONTROLS)), soft_wrap=True)

    @contextmanager
    def show_bar(self, title: str) -> Iterator[Bar]:
        """Show a bar until the block ends; of the terminal it leaves nothing behind."""
        bar = Bar(self._console, title)
        self.has_bar = True
        try:
            yield bar
        finally:
            self.has_bar = False
            bar.remove()


class Bar:
    """A line that says how far a stage is; it appears when it is first drawn."""

    def __init__(self, console: _Console, title: str) -> None:
        self._console = console
        self._title = title
        self._bar = BarColumn(bar_width=_BAR_WIDTH)
        self._progress = Progress(
            TextColumn("{task.description}"),
            self._bar,
            TextColumn("{task.fields[told]}", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(title, told="")

    def draw(self, done: int, total: int, told: str) -> None:
        """Draw it anew, unless another process has the terminal for now."""
        if not self._is_in_foreground():
            return
        self._console.fit()
        self._bar.bar_width = min(_BAR_WIDTH, self._console.width // 5)
        # The last column stays free: a character there moves some terminals to the next line.
        room = self._console.width - len(self._title) - self._bar.bar_width - 3
        if len(told) > room:
            told = f"{told[: max(0, room - 1)]}…"
        self._progress.update(self._task, completed=done, total=total, told=told)
        with suppress(OSError):  # it was closed in the meantime, which is no reason to end the work
            self._progress.start()
            self._progress.refresh()

    def remove(self) -> None:
        """Take it away."""
        with suppress(OSError):
            self._progress.stop()

    def _is_in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._console.file.fileno()) == os.getpgrp()
        except OSError:
            return False


def write_to_stderr(line: bytes) -> None:
    """Write a whole line to what this process's stderr was before Dagster captured it."""
    with suppress(OSError):  # nobody reads it any more
        while line:
            line = line[os.write(kept_stderr(), line) :]


@cache
def kept_stderr() -> int:
    """Return a descriptor of this process's stderr; the first call decides, and so comes before any step."""
    return os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)


@cache
def attached_terminal() -> Terminal | None:
    """Return the terminal that this process's stderr is, if a person looks at it; the first call decides."""
    descriptor = sys.__stderr__.fileno() if sys.__stderr__ else -1
    if not is_watched(descriptor):
        return None
    return Terminal(os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace"))


def is_watched(descriptor: int) -> bool:
    """Tell whether a descriptor is a terminal that can show a bar, and this process the one command on it.

    The processes of runs that `dagster dev` starts share its terminal with one another, and the build servers of
    the world have terminals that nobody sees.
    """
    capable = os.environ.get("TERM", "") not in ("", "dumb", "unknown") and not os.environ.get("CI")
    return capable and multiprocessing.parent_process() is None and os.isatty(descriptor)
