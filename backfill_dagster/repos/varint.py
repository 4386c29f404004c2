"""Unsigned varints of the multiformats: https://github.com/multiformats/unsigned-varint."""

from __future__ import annotations

# "a maximum of 9 bytes", hence 63 bits.
_MAX_BYTES = 9


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Read the varint at `position`; return its value and the position after it.

    Raises EOFError if it is not complete before `end`, ValueError if it is longer than it has to be or than
    the format allows.
    """
    value = 0
    for number in range(_MAX_BYTES):
        if position + number >= end:
            raise EOFError("the data ends inside a varint")
        byte = data[position + number]
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            if byte == 0 and number:
                raise ValueError("a varint is not in its shortest form")
            return value, position + number + 1
    raise ValueError("a varint is longer than nine bytes")
