"""Timestamp identifiers (TIDs), which order revisions: https://atproto.com/specs/tid."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_TID = re.compile(r"[2-7a-j][2-7a-z]{12}")
_DIGITS = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_CLOCK_ID_BITS = 10


@dataclass(frozen=True, slots=True)
class Tid:
    """The two parts of a timestamp identifier: microseconds since 1970 (UTC), and the writer's clock id."""

    microseconds: int
    clock_id: int


def parse_tid(text: str) -> Tid | None:
    """Read a timestamp identifier; None if text is none.

    The writer chose it: its time is what the writer claimed.
    """
    if _TID.fullmatch(text) is None:
        return None
    number = int(text.translate(_DIGITS), 32)
    return Tid(number >> _CLOCK_ID_BITS, number & ((1 << _CLOCK_ID_BITS) - 1))
