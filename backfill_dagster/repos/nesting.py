"""How deep a block of CBOR nests, read from its heads alone and before anything decodes it.

Both decoders make room for as many elements as an array claims to have, at each level again, and check a claim
against the bytes of the whole rest of the block only. A thousand arrays within each other, each of which claims the
rest of a megabyte, make them reserve gigabytes, and work for minutes. cbrrr knows no bound of depth besides.
"""

from __future__ import annotations

import re

# Below this size nothing can be claimed that would matter; a node of the tree or a post is rarely larger.
SMALL_BLOCK_BYTES = 4096

# CBOR's major types: what the upper three bits of a head say (RFC 8949, section 3.1).
_BYTES, _TEXT, _ARRAY, _MAP, _TAG = 2, 3, 4, 5, 6
# Items that are whole in their first byte: small numbers, simple values, and whatever is empty. Megabytes of them
# are gone through at once.
_MANY = 64
_ONE_BYTE_ITEMS = re.compile(rb"[\x00-\x17\x20-\x37\x40\x60\x80\xa0\xe0-\xf7]+")


def nests_deeper(block: bytes, levels: int) -> bool:
    """Tell whether more than so many levels of arrays and maps stand within each other in a block.

    Reads no further than to the first that does. Nothing else is judged, so that an invalid block may pass. Raises
    ValueError for a block that ends too early or goes on after its end, for lengths that are left open, and for
    arrays and maps that together claim more items than there are bytes: what decoders reserve for any other block
    is a small multiple of its size.
    """
    size = len(block)
    position = 0
    # Items that are still to come: at all levels together, and in each array or map that is open.
    owed = 1
    waiting = [1]
    while owed:
        if owed > size - position:
            raise ValueError("more items are claimed than there are bytes")
        if waiting[-1] > _MANY and len(waiting) <= levels:
            items = _one_byte_items(block, position, waiting[-1] - 1)
            position += items
            owed -= items
            waiting[-1] -= items
        major, argument, position = _head_at(block, position)
        if major == _TAG:
            # It belongs to the item that follows.
            continue
        owed -= 1
        waiting[-1] -= 1
        if major in (_ARRAY, _MAP):
            if len(waiting) > levels:
                return True
            items = argument * 2 if major == _MAP else argument
            owed += items
            waiting.append(items)
        elif major in (_BYTES, _TEXT):
            position += argument
        while waiting and not waiting[-1]:
            waiting.pop()
    if position != size:
        raise ValueError("the block does not end with its item")
    return False


def _one_byte_items(block: bytes, position: int, at_most: int) -> int:
    """Count the items of one byte each that stand at `position`, one after the other."""
    run = _ONE_BYTE_ITEMS.match(block, position, position + at_most)
    return 0 if run is None else run.end() - position


def _head_at(block: bytes, position: int) -> tuple[int, int, int]:
    """Read the head of the item at `position`: its major type, its argument, and where its content begins."""
    major, argument = block[position] >> 5, block[position] & 0x1F
    position += 1
    if argument < 24:
        return major, argument, position
    if argument > 27:
        raise ValueError("a length is left open")
    end = position + (1 << argument - 24)
    return major, int.from_bytes(block[position:end]), end
