"""Many pieces of work, done in worker processes if they are worth it, with few of them waiting at a time."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from backfill_dagster.workers import worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from backfill_dagster.stores.location import Location

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")

_AHEAD = 2


def work_on(
    root: Location, work: Callable[[Location, _Piece], _Result], pieces: Iterable[_Piece], workers: int
) -> Iterator[_Result]:
    """Yield what the work on each piece of the study at `root` comes to, in order; in this process if no `workers`."""
    if not workers:
        yield from (work(root, piece) for piece in pieces)
        return
    waiting_pieces = iter(pieces)
    with worker_pool(workers) as pool:
        first = islice(waiting_pieces, _AHEAD * workers)
        waiting = deque(pool.submit(work, root, piece) for piece in first)
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, root, piece) for piece in islice(waiting_pieces, 1))
