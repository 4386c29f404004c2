"""Timestamp identifiers: the record keys and revisions of a repository (https://atproto.com/specs/tid)."""

_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def tid(microseconds: int, clock: int) -> str:
    """Write 53 bits of microseconds since 1970 and 10 bits of clock id as 13 base32-sortable characters."""
    # The clock's 10 bits are exactly the last two characters; the rest is cut into pairs as well.
    return (
        _ALPHABET[microseconds >> 50]
        + _PAIRS[microseconds >> 40 & 1023]
        + _PAIRS[microseconds >> 30 & 1023]
        + _PAIRS[microseconds >> 20 & 1023]
        + _PAIRS[microseconds >> 10 & 1023]
        + _PAIRS[microseconds & 1023]
        + _PAIRS[clock]
    )
