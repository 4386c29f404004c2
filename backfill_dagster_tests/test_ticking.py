import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from backfill_dagster.ticking import ticking


def test_it_ticks_while_nothing_else_happens_and_once_at_the_end() -> None:
    ticks: list[str] = []
    state = "waiting"

    async def work() -> None:
        nonlocal state
        async with ticking(lambda: ticks.append(state), every=0.01):
            await asyncio.sleep(0.1)
            state = "done"
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(work())
    assert 4 <= ticks.count("waiting") <= 11
    assert ticks[-1] == "done"


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("alone"), ExceptionGroup("of tasks", [ValueError("inner")])])
def test_an_error_of_the_block_comes_out_as_it_was_raised(error: Exception) -> None:
    error.__cause__ = OSError("the cause")

    async def work(what: Callable[[], None]) -> None:
        async with ticking(lambda: None):
            await asyncio.sleep(0)
            what()

    with pytest.raises(type(error)) as raised:
        asyncio.run(work(partial(fail, error)))
    assert raised.value is error
    assert isinstance(error.__cause__, OSError)


def test_an_error_of_the_tick_ends_the_block() -> None:
    async def work() -> None:
        async with ticking(partial(fail, OSError("the disk is full"))):
            await asyncio.sleep(60)

    with pytest.raises(OSError, match="the disk is full"):
        asyncio.run(work())


def test_a_block_that_is_cancelled_is_cancelled() -> None:
    async def work() -> None:
        async with ticking(lambda: None):
            await asyncio.sleep(60)

    async def run() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
