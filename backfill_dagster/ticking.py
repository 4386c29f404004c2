"""Something done again and again at its own pace, for as long as other work on the same event loop goes on."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# Often enough for what a person watches; a call that finds nothing to do costs microseconds.
TICK_SECONDS = 0.2


@asynccontextmanager
async def ticking(tick: Callable[[], object], every: float = TICK_SECONDS) -> AsyncIterator[None]:
    """Call `tick` at once, every so many seconds, and when the block has done its work; its error ends the block."""

    async def repeat() -> None:
        while True:
            tick()
            await asyncio.sleep(every)

    alone: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            ticks = tasks.create_task(repeat())
            try:
                yield
            finally:
                ticks.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
    if alone is not None:
        # The group is this function's own affair: an error of the block comes out as it was raised.
        raise alone
    tick()
