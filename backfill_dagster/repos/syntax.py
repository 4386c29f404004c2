"""Syntax of the identifiers that a repository's paths are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_RECORD_KEY_LENGTH = 512

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_NSID = re.compile(rf"(?![0-9]){_LABEL}(?:\.{_LABEL})+\.[a-zA-Z][a-zA-Z0-9]{{0,62}}", re.ASCII)
_MAX_NSID_LENGTH = 317
_RECORD_KEY = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9._:~-]{1,512}", re.ASCII)

_TID_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_TID = re.compile(r"[2-7a-j][2-7a-z]{12}", re.ASCII)
_TID_DIGITS = str.maketrans(_TID_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_CLOCK_ID_BITS = 10


@dataclass(frozen=True, slots=True)
class Tid:
    """The two parts of a timestamp identifier: microseconds since 1970 (UTC), and the writer's clock id."""

    microseconds: int
    clock_id: int


def is_nsid(text: str) -> bool:
    """Say whether text is a namespaced identifier (https://atproto.com/specs/nsid)."""
    return len(text) <= _MAX_NSID_LENGTH and _NSID.fullmatch(text) is not None


def is_record_key(text: str) -> bool:
    """Say whether text is a record key (https://atproto.com/specs/record-key)."""
    return _RECORD_KEY.fullmatch(text) is not None


def parse_tid(text: str) -> Tid | None:
    """Read a timestamp identifier; None if text is none (https://atproto.com/specs/tid).

    The client chose it: its time is what the client claimed.
    """
    if _TID.fullmatch(text) is None:
        return None
    number = int(text.translate(_TID_DIGITS), 32)
    return Tid(number >> _CLOCK_ID_BITS, number & ((1 << _CLOCK_ID_BITS) - 1))
