"""Framing of CAR files, version 1: which blocks are sound and where they lie, copying and decoding none.

https://ipld.io/specs/transport/car/carv1/. There is no trailer, so a file that was cut between two blocks looks
whole from here: only the walk of the tree proves that nothing is missing.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from typing import TypeAlias

from cbrrr import CID, decode_dag_cbor

from backfill_dagster.repos.cid import (
    CID_BYTES,
    DAG_CBOR_PREFIX,
    PREFIX_BYTES,
    cid_length,
    cid_text,
    is_repo_cid,
)
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.varint import read_varint

CarBytes: TypeAlias = bytes | mmap.mmap
Span: TypeAlias = tuple[int, int]

# A header with one root has 58 bytes. What claims far more is some other format.
_MAX_HEADER_BYTES = 8192
# CBOR's first byte of a map whose length is stated.
_MAP_HEADS = range(0xA0, 0xBC)
# Bounds of the DAG-CBOR CIDs among all byte strings: one comparison tells the usual kind from every other.
_FIRST_CBOR_CID = DAG_CBOR_PREFIX
_AFTER_CBOR_CIDS = DAG_CBOR_PREFIX[:-1] + bytes([DAG_CBOR_PREFIX[-1] + 1])


@dataclass(frozen=True, slots=True)
class CarIndex:
    """The CAR's root, and where each sound block lies: CID to (start, end), in bytes from the start of the file.

    Every block listed has the hash of its CID; `corrupt` holds the CIDs of those that have not, even if there is a
    sound one as well. Only CIDs of the form that repositories use are in either.
    """

    root: bytes
    spans: dict[bytes, Span]
    corrupt: set[bytes]

    def span(self, cid: bytes) -> Span:
        """Return where a block lies.

        Raises RepoRejectedError: missing_block, corrupt_block, or bad_tree if the CID has another form than
        repositories use.
        """
        span = self.spans.get(cid)
        if span is not None:
            return span
        if not is_repo_cid(cid):
            raise RepoRejectedError(RepoFault.BAD_TREE, f"a link is of an unsupported kind: {cid.hex()[:80]}")
        if cid in self.corrupt:
            raise RepoRejectedError(
                RepoFault.CORRUPT_BLOCK, f"block {cid_text(cid)} does not have the hash of its CID"
            )
        raise RepoRejectedError(RepoFault.MISSING_BLOCK, f"block {cid_text(cid)} is not in the file")


def index_car(car: CarBytes, *, max_bytes: int, max_blocks: int) -> CarIndex:
    """Find the root and every block, and check the blocks' hashes; none is decoded or kept.

    A block that is not what its CID says does no harm until something refers to it. Of several blocks with one
    CID any sound one serves. Every section must hold a CID, of whatever kind, so the zero bytes that some tools
    pad with are refused, as the specification has it: "All sections must be valid".

    Raises RepoRejectedError: empty_body, not_a_car, unsupported_car, truncated, corrupt_block, too_large.
    """
    if len(car) == 0:
        raise RepoRejectedError(RepoFault.EMPTY_BODY, "the file has no bytes")
    if len(car) > max_bytes:
        raise RepoRejectedError(RepoFault.TOO_LARGE, f"the file has {len(car)} bytes of at most {max_bytes}")
    root, position = _read_header(car)
    spans, corrupt = _index_sections(car, position, max_blocks)
    return CarIndex(root, spans, corrupt)


def _read_header(car: CarBytes) -> tuple[bytes, int]:
    """Return the root, and the position after the header."""
    try:
        length, start = read_varint(car, 0, len(car))
    except EOFError:
        raise _truncated("header") from None
    except ValueError as error:
        raise _not_a_car(str(error)) from None
    end = start + length
    if length == 0 or length > _MAX_HEADER_BYTES or (start < len(car) and car[start] not in _MAP_HEADS):
        # An HTML or JSON body is told from a cut CAR here: its first character would be the header's length.
        raise _not_a_car(f"it begins with {car[:16]!r}")
    if end > len(car):
        raise _truncated("header")
    try:
        header = decode_dag_cbor(car[start:end])
    except ValueError as error:
        raise _not_a_car(f"its header is not DAG-CBOR ({error!s:.100})") from None
    return _root_of(header), end


def _root_of(header: object) -> bytes:
    version = header.get("version") if isinstance(header, dict) else None
    if not isinstance(header, dict) or type(version) is not int:
        raise _not_a_car("its header has no version")
    if version != 1:
        raise RepoRejectedError(RepoFault.UNSUPPORTED_CAR, f"CAR version {version} is not supported")
    roots = header.get("roots")
    if not isinstance(roots, list) or not all(isinstance(root, CID) for root in roots):
        raise _not_a_car("its header has no list of roots")
    if len(roots) != 1:
        raise RepoRejectedError(RepoFault.UNSUPPORTED_CAR, f"the CAR has {len(roots)} roots, not one")
    root: bytes = roots[0].cid_bytes
    if len(root) != CID_BYTES or not root.startswith(DAG_CBOR_PREFIX):
        raise RepoRejectedError(RepoFault.UNSUPPORTED_CAR, "the root's CID is not a commit's")
    return root


def _index_sections(car: CarBytes, position: int, max_blocks: int) -> tuple[dict[bytes, Span], set[bytes]]:
    try:
        with memoryview(car) as view:
            return _sound_and_corrupt(car, view, position, max_blocks)
    except (EOFError, IndexError):
        raise _truncated("block's length") from None
    except ValueError as error:
        raise RepoRejectedError(RepoFault.CORRUPT_BLOCK, f"a block's length is none: {error}") from None


def _sound_and_corrupt(
    car: CarBytes, view: memoryview, position: int, max_blocks: int
) -> tuple[dict[bytes, Span], set[bytes]]:
    # Hashing here, in the order of the file, takes far less time than in the order of the tree. A repository of
    # a gigabyte has millions of sections, so all that is rare is left to other functions.
    size = len(car)
    sha256 = hashlib.sha256
    spans: dict[bytes, Span] = {}
    corrupt: set[bytes] = set()
    for _ in range(max_blocks):
        if position == size:
            break
        length = car[position]
        position += 1
        if length > 0x7F:
            high = car[position]
            if 0 < high < 0x80:
                length += (high << 7) - 0x80
                position += 1
            else:
                length, position = read_varint(car, position - 1, size)
        end = position + length
        if end > size:
            raise _truncated("block")
        start = position + CID_BYTES
        cid = car[position:start]
        if (length >= CID_BYTES and _FIRST_CBOR_CID <= cid < _AFTER_CBOR_CIDS) or (
            _is_other_section(car, position, end) and is_repo_cid(cid)
        ):
            if sha256(view[start:end]).digest() == cid[PREFIX_BYTES:]:
                spans[cid] = (start, end)
            else:
                corrupt.add(cid)
        position = end
    if position != size:
        raise RepoRejectedError(RepoFault.TOO_LARGE, f"the CAR has more than {max_blocks} blocks")
    return spans, corrupt


def _is_other_section(car: CarBytes, position: int, end: int) -> bool:
    """Say whether a section has a CID of 36 bytes; refuse it if it has none of any length."""
    try:
        return cid_length(car, position, end) == CID_BYTES
    except (EOFError, ValueError) as error:
        raise RepoRejectedError(
            RepoFault.CORRUPT_BLOCK, f"the section at byte {position} has no CID: {error}"
        ) from None


def _not_a_car(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.NOT_A_CAR, f"the file is not a CAR: {detail}")


def _truncated(part: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TRUNCATED, f"the file ends inside a {part}")
