"""Record blocks -> decoded records, one by one, so that a bad block costs one record.

libipld decodes twice as fast as cbrrr, but gives CID links and byte strings the same Python type. So cbrrr
decodes whatever can hold a link (tag 42 of CBOR), and libipld the rest, where bytes are byte strings: nothing is
ever guessed. What libipld refuses cbrrr has the last word on: it alone reads a negative zero. Both refuse what
DAG-CBOR forbids, as text that is not UTF-8, map keys that are unsorted or double, or NaN; beside a link, also
numbers that are longer than they need be.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cbrrr
import libipld
import polars as pl

from backfill_dagster.records.outcomes import RejectReason
from backfill_dagster.repos.nesting import SMALL_BLOCK_BYTES, nests_deeper

Record = dict[str, Any]

# Servers refuse records of more than about 1 MB, yet larger ones occur. A byte of hostile CBOR can take a
# hundred of memory.
MAX_RECORD_BYTES = 4 * 1024 * 1024
# Far beyond what any client writes; the JSON writer gives up at 254.
MAX_NESTING = 250

# Tag 42 as DAG-CBOR writes it, and in the longer forms that libipld lets pass.
_LINK_TAGS = (
    b"\xd8\x2a",
    b"\xd9\x00\x2a",
    b"\xda\x00\x00\x00\x2a",
    b"\xdb\x00\x00\x00\x00\x00\x00\x00\x2a",
)
_RESERVED_KEYS = ("$link", "$bytes")
# Every level of nesting takes a byte that opens an array (0x80-0x9b) or a map (0xa0-0xbb).
_NOT_OPENING = bytes(byte for byte in range(256) if not 0x80 <= byte <= 0xBB)


class Link(bytes):
    """A CID link in a decoded record, as the CID's bytes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A block of which no record could be made: its position in the input, and why."""

    position: int
    reason: RejectReason
    detail: str


def may_hold_links(block: pl.Expr) -> pl.Expr:
    """Tell which blocks have the bytes of a link's tag in them; the others hold no link."""
    return pl.any_horizontal(block.bin.contains(tag) for tag in _LINK_TAGS)


def may_hold_reserved_keys(block: pl.Expr) -> pl.Expr:
    """Tell which blocks have the letters in them of a map key that JSON reserves for links and bytes."""
    return pl.any_horizontal(block.bin.contains(key.encode()) for key in _RESERVED_KEYS)


def decode_blocks(blocks: Sequence[bytes], may_link: Sequence[bool]) -> tuple[list[Record], list[Failure]]:
    """Decode blocks in order. The blocks at the failures' positions have no record in the result."""
    records: list[Record] = []
    failures: list[Failure] = []
    decode_fast = libipld.decode_dag_cbor
    for position, (block, linked) in enumerate(zip(blocks, may_link, strict=True)):
        try:
            if (
                len(block) > MAX_NESTING
                and (len(block) > SMALL_BLOCK_BYTES or len(block.translate(None, _NOT_OPENING)) > MAX_NESTING)
                and nests_deeper(block, MAX_NESTING)
            ):
                failures.append(Failure(position, RejectReason.TOO_DEEP, f"more than {MAX_NESTING} levels"))
                continue
            if linked:
                record = _decode_exactly(block)
            else:
                try:
                    record = decode_fast(block)
                except ValueError:
                    record = _decode_exactly(block)
        except RecursionError:
            failures.append(Failure(position, RejectReason.TOO_DEEP, "nested beyond the decoder's limit"))
        except ValueError as error:
            failures.append(Failure(position, RejectReason.UNDECODABLE, str(error)))
        else:
            if type(record) is dict:
                records.append(record)
            else:
                failures.append(Failure(position, RejectReason.NOT_A_MAP, f"a {type(record).__name__}"))
    return records, failures


def has_reserved_key(record: Record) -> bool:
    """Tell whether a map of the record has a key that makes it look like a link or a byte string in JSON."""
    maps = (container for level in _levels(record) for container in level if isinstance(container, dict))
    return any(key in container for container in maps for key in _RESERVED_KEYS)


def _decode_exactly(block: bytes) -> Any:
    return cbrrr.decode_dag_cbor(block, cid_ctor=Link)


def _levels(record: Record) -> Iterator[list[Record | list[Any]]]:
    """Yield the maps and lists of a record level by level, since recursion ends where hostile nesting begins."""
    level: list[Record | list[Any]] = [record]
    while level:
        yield level
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
