"""The usual way: the Python SDK's CAR class, and its model of each record. It makes no keys, columns or file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def read_models(cars: Iterable[Path]) -> None:
    """Read each file and make a model of every block that has one; other lexicons and odd records stay dicts."""
    # It takes longer to import than all else that the tests of this repository need.
    from atproto import CAR, models  # type: ignore[import-untyped]

    for path in cars:
        car = CAR.from_bytes(path.read_bytes())
        found = [models.get_or_create(block, strict=False) for block in car.blocks.values()]
        del found
