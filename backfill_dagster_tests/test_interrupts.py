import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from backfill_dagster.interrupts import run_interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class InterruptedByTest(BaseException):
    """What the caller's handler raises; Dagster's raises a BaseException of its own, too."""


def raise_interrupted(_number: int, _frame: FrameType | None) -> None:
    raise InterruptedByTest


@pytest.fixture(autouse=True)
def _raising_handlers() -> Iterator[None]:
    former = {number: signal.signal(number, raise_interrupted) for number in SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_hits_a_callback_ends_the_work_in_order(number: int) -> None:
    steps = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(send, number)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    with pytest.raises(InterruptedByTest):
        run_interruptible(work())
    assert steps == ["cleaned up"]
    assert signal.getsignal(number) is raise_interrupted


def test_a_signal_wakes_a_loop_that_sleeps() -> None:
    started = time.monotonic()
    timer = threading.Timer(0.2, send, [signal.SIGINT])
    timer.start()
    with pytest.raises(InterruptedByTest):
        run_interruptible(asyncio.sleep(60))
    assert time.monotonic() - started < 5


def test_a_second_signal_does_not_wait_for_the_work_to_clean_up() -> None:
    async def work() -> None:
        try:
            send(signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            send(signal.SIGINT)
            await asyncio.sleep(60)

    started = time.monotonic()
    with pytest.raises(InterruptedByTest):
        run_interruptible(work())
    assert time.monotonic() - started < 5


def test_work_that_ends_by_itself_gives_its_result_and_its_errors() -> None:
    async def fail() -> None:
        raise ValueError("as it is")

    assert run_interruptible(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="as it is"):
        run_interruptible(fail())
    assert signal.getsignal(signal.SIGINT) is raise_interrupted


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(run_interruptible(asyncio.sleep(0, "done"))))
    thread.start()
    thread.join()
    assert results == ["done"]
