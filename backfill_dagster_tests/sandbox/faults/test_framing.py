from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from backfill_dagster.sandbox.faults import CarVersion2, WrongRoots

if TYPE_CHECKING:
    from .export import Fetch


def test_version_2_wraps_the_right_file(fetch: Fetch) -> None:
    healthy, found = fetch(), fetch(CarVersion2())
    # The pragma as its specification spells it.
    assert found.car[:11] == bytes.fromhex("0aa16776657273696f6e02")
    start, size, index = struct.unpack("<QQQ", found.car[11 + 16 : 11 + 40])
    assert (start, size, index) == (51, len(healthy.car), 0)
    assert found.car[start : start + size] == healthy.car


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_roots(fetch: Fetch, count: int) -> None:
    healthy, found = fetch(), fetch(WrongRoots(count))
    assert len(found.roots) == count
    assert found.roots[:1] == healthy.roots[:count]
    assert all(root in healthy.blocks for root in found.roots)
    assert found.sections == healthy.sections
