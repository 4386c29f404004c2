"""The decoder alone: every block of a CAR as Python objects, nothing checked, nothing made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libipld

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def decode(cars: Iterable[Path]) -> None:
    """Read and decode each file."""
    for car in cars:
        libipld.decode_car(car.read_bytes())
