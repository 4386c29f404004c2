"""Ctrl-C and SIGTERM while an event loop runs: first the work is cancelled in order, then the signal is answered.

Whoever calls a stage has a handler that raises: Python's own does for SIGINT, and Dagster's for both. Raised in the
middle of whatever the loop is at, such an error can hit a callback, whose errors a loop logs and forgets, or a task
that nobody looks at; and the run would go on, or end with its scratch left behind.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

_Result = TypeVar("_Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_interruptible(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine on a new event loop, as `asyncio.run` does.

    At SIGINT or SIGTERM the coroutine is cancelled; when it has ended, the handler that was there before gets the
    signal, and what that raises is raised. A second signal reaches that handler at once. A signal that nobody in
    this process handles keeps its effect.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {number: handler for number, handler in former.items() if callable(handler)}
    received: list[signal.Signals] = []

    async def run() -> _Result:
        cancel = _cancelling(handlers, received)
        for number in handlers:
            signal.signal(number, cancel)
        return await work

    try:
        return asyncio.run(run())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            handlers[received[0]](received[0], None)


def _cancelling(
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]], received: list[signal.Signals]
) -> Callable[[int, FrameType | None], None]:
    """Return a handler that cancels the current task; `received` tells which signals came."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  a coroutine always runs in one

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if len(received) > 1:
            handlers[received[-1]](number, frame)
            return
        task.cancel()
        # The loop may sleep, and would not look for cancelled tasks before something else wakes it.
        loop.call_soon_threadsafe(lambda: None)

    return handle
