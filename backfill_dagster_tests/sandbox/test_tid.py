from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.tid import tid

if TYPE_CHECKING:
    from pathlib import Path

ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"


def number_of(text: str) -> int:
    number = 0
    for character in text:
        number = number * 32 + ALPHABET.index(character)
    return number


def test_the_valid_ones_of_the_vectors_can_be_written(shared_dir: Path) -> None:
    lines = (shared_dir / "vectors/interop/syntax/tid_syntax_valid.txt").read_text().splitlines()
    valid = [line for line in lines if line and not line.startswith("#")]
    assert len(valid) == 4
    for text in valid:
        number = number_of(text)
        if number >> 63 == 0:
            assert tid(number >> 10, number & 1023) == text


def test_time_and_clock_can_be_read_again_and_order_is_kept() -> None:
    written = [tid(1_727_395_200_000_000 + step * 7_919, step % 1024) for step in range(5000)]
    assert written == sorted(written)
    for step, text in enumerate(written):
        assert re.fullmatch(r"[2-7a-j][2-7a-z]{12}", text)
        assert divmod(number_of(text), 1024) == (1_727_395_200_000_000 + step * 7_919, step % 1024)
