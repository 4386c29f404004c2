"""Event loops whose clock jumps to the next moment at which something happens, so that hours take no time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")

# The unix second at which every such clock begins.
EPOCH = 1_795_303_128.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Waits for nothing: when all tasks sleep, its time is at once that of the first to wake up."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        events: list[Any] = super().select(0)
        if not events:
            assert timeout is not None, "every task waits for another one"
            self._loop.now += timeout
        return events


def run_in_virtual_time(
    monkeypatch: pytest.MonkeyPatch, modules: list[str], work: Callable[[], Coroutine[Any, Any, Result]]
) -> Result:
    """Run `work` on a virtual loop, with the `time` of these modules being the loop's."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        clock = SimpleNamespace(monotonic=loop.time, time=lambda: EPOCH + loop.time(), perf_counter=loop.time)
        with monkeypatch.context() as patches:
            for module in modules:
                patches.setattr(f"{module}.time", clock)
            return runner.run(work())
