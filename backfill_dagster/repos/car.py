"""Framing of CAR files, version 1: which blocks are sound and where they lie, decoding none.

https://ipld.io/specs/transport/car/carv1/. There is no trailer, so a file that was cut between two blocks looks
whole from here: only the walk of the tree proves that nothing is missing.

A large repository has millions of blocks, so what is known of them is held in arrays: some 60 bytes for each, where
Python's objects would take several hundred.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from cbrrr import CID, decode_dag_cbor

from backfill_dagster.repos.car_bytes import bytes_at, join_rows
from backfill_dagster.repos.cid import (
    CID_BYTES,
    DAG_CBOR_PREFIX,
    PREFIX_BYTES,
    RAW_PREFIX,
    cid_length,
    cid_text,
    is_repo_cid,
)
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.varint import read_varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from backfill_dagster.repos.car_bytes import CarBytes

# A header with one root has 58 bytes. What claims far more is some other format.
_MAX_HEADER_BYTES = 8192
# CBOR's first byte of a map whose length is stated.
_MAP_HEADS = range(0xA0, 0xBC)
# What is looked at together, unless a single block is larger.
_BYTES_AT_ONCE = 8 * 2**20
_MAX_LENGTH_BYTES = 9
_DIGEST_BYTES = CID_BYTES - PREFIX_BYTES
# Multiples of it, as numbers of 64 bits, are as different as can be.
_MARK = np.uint64(0x9E37_79B9_7F4A_7C15)
# Positions in the CID, from its start: the codec, and the digest's first bytes.
_CODEC, _KEY = 1, slice(PREFIX_BYTES, PREFIX_BYTES + 8)


@dataclass(frozen=True, slots=True, eq=False)
class CarIndex:
    """The roots of some CARs in one content, mostly of a single one, and where their blocks lie.

    That is in bytes from the start of the content, and in its order. `numbers` says which CARs the roots are of.

    `cids` (36 bytes a row), `starts` and `ends` are of the blocks that have the hash of their CID; `corrupt` are the
    CIDs of those that have not. Only CIDs of the form that repositories use are in either. Before a block's start
    stands its CID. `keys`, ascending, are numbers made of the sound blocks' CIDs, each CID once, and `rows` the
    blocks that they are of. Into them goes the mark of the CAR, so that no CAR's tree has blocks of another one.
    """

    roots: tuple[bytes, ...]
    numbers: NDArray[np.int32]
    marks: NDArray[np.uint64]
    cids: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    corrupt: NDArray[np.uint8]
    keys: NDArray[np.uint64]
    rows: NDArray[np.int32]

    @property
    def root(self) -> bytes:
        """The root of the first CAR."""
        return self.roots[0]

    def find(self, cids: NDArray[np.uint8], cars: NDArray[np.int32] | int = 0) -> NDArray[np.int32]:
        """Return the blocks of these CIDs, each in the CAR of this number, as positions in `starts` and `ends`.

        Raises RepoRejectedError: missing_block, corrupt_block, or bad_tree if a CID has another form than
        repositories use.
        """
        keys = _keys_of(cids) ^ self.marks[cars]
        if not len(self.keys):
            return np.array([self._find_one(cid, key) for cid, key in zip(cids, keys, strict=True)], np.int32)
        places = self.keys.searchsorted(keys)
        np.minimum(places, len(self.keys) - 1, out=places)
        rows = self.rows[places]
        found = self.cids[rows]
        if found.tobytes() != cids.tobytes() or self.keys[places].tobytes() != keys.tobytes():
            for row in np.flatnonzero((found != cids).any(axis=1) | (self.keys[places] != keys)).tolist():
                rows[row] = self._find_one(cids[row], keys[row])
        return rows

    def span(self, cid: bytes) -> tuple[int, int]:
        """Return where one block begins and ends; raises as `find` does."""
        if len(cid) != CID_BYTES:
            raise _unsupported_link(cid)
        [row] = self.find(join_rows([cid], CID_BYTES))
        return int(self.starts[row]), int(self.ends[row])

    def _find_one(self, cid: NDArray[np.uint8], key: np.uint64) -> int:
        text = cid.tobytes()
        # Numbers of two CIDs can be equal: nobody meets that by chance, but it can be brought about.
        first, after = (int(self.keys.searchsorted(key, side)) for side in ("left", "right"))
        for row in self.rows[first:after].tolist():
            if self.cids[row].tobytes() == text:
                return int(row)
        if not is_repo_cid(text):
            raise _unsupported_link(text)
        if (self.corrupt == cid).all(axis=1).any():
            raise RepoRejectedError(
                RepoFault.CORRUPT_BLOCK, f"block {cid_text(text)} does not have the hash of its CID"
            )
        raise RepoRejectedError(RepoFault.MISSING_BLOCK, f"block {cid_text(text)} is not in the file")


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
    return _index_pieces(_pieces(car, position, max_blocks), (root,), [0], [len(car)])


def index_cars(content: bytes, sizes: Sequence[int], *, max_bytes: int, max_blocks: int) -> CarIndex:
    """Index several CARs that follow each other in one content. One whose frames do not hold is left out.

    Raises RepoRejectedError if something else does not hold, of whichever. The limits are for all together.
    """
    if len(content) > max_bytes:
        raise RepoRejectedError(
            RepoFault.TOO_LARGE, f"the files have {len(content)} bytes of at most {max_bytes}"
        )
    roots: list[bytes] = []
    numbers: list[int] = []
    begins: list[int] = []
    ends: list[int] = []
    for number, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
        with suppress(RepoRejectedError):
            root, after = _read_header(content[end - size : end])
            some_begin, some_end = _frame(content, end, end - size + after)
            if some_end and some_end[-1] > end:
                raise _truncated("block")
            roots.append(root)
            numbers.append(number)
            begins += some_begin
            ends += some_end
    if len(begins) > max_blocks:
        raise RepoRejectedError(RepoFault.TOO_LARGE, f"the CARs have more than {max_blocks} blocks")
    piece = _Piece(content, 0, np.array(begins, np.int64), np.array(ends, np.int64))
    return _index_pieces([piece], tuple(roots), numbers, sizes)


def _index_pieces(
    pieces: Iterable[_Piece], roots: tuple[bytes, ...], numbers: Sequence[int], sizes: Sequence[int]
) -> CarIndex:
    # Arrays that grow in place take no second one of their size.
    known, starts, ends, corrupt = bytearray(), bytearray(), bytearray(), bytearray()
    for piece in pieces:
        cids, before, after = _with_repo_cids(piece)
        digests = _digests(piece.content, before + CID_BYTES, after)
        if digests.tobytes() != cids[:, PREFIX_BYTES:].tobytes():
            sound = (digests == cids[:, PREFIX_BYTES:]).all(axis=1)
            corrupt += cids[~sound].tobytes()
            cids, before, after = cids[sound], before[sound], after[sound]
        known += cids.tobytes()
        starts += (before + (piece.start + CID_BYTES)).tobytes()
        ends += (after + piece.start).tobytes()
    return _sorted_index(
        roots,
        numbers,
        sizes,
        np.frombuffer(known, np.uint8).reshape(-1, CID_BYTES),
        np.frombuffer(starts, np.int64),
        np.frombuffer(ends, np.int64),
        np.frombuffer(corrupt, np.uint8).reshape(-1, CID_BYTES),
    )


def _read_header(car: CarBytes) -> tuple[bytes, int]:
    """Return the root, and the position after the header."""
    content = car[: _MAX_HEADER_BYTES + _MAX_LENGTH_BYTES]
    try:
        length, start = read_varint(content, 0, len(content))
    except EOFError:
        raise _truncated("header") from None
    except ValueError as error:
        raise _not_a_car(str(error)) from None
    end = start + length
    if length == 0 or length > _MAX_HEADER_BYTES or (start < len(car) and content[start] not in _MAP_HEADS):
        # An HTML or JSON body is told from a cut CAR here: its first character would be the header's length.
        raise _not_a_car(f"it begins with {content[:16]!r}")
    if end > len(car):
        raise _truncated("header")
    try:
        header = decode_dag_cbor(content[start:end])
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


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some sections: the file's content from `start` on, where in it each begins, after its length, and ends."""

    content: bytes
    start: int
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


def _pieces(car: CarBytes, position: int, max_blocks: int) -> Iterator[_Piece]:
    size, sections = len(car), 0
    while position < size:
        start = position
        content = car[start : start + _BYTES_AT_ONCE + _MAX_LENGTH_BYTES]
        begins, ends = _frame(content, min(size - start, _BYTES_AT_ONCE))
        position = start + ends[-1]
        if position > size:
            raise _truncated("block")
        sections += len(begins)
        if sections > max_blocks:
            raise RepoRejectedError(RepoFault.TOO_LARGE, f"the CAR has more than {max_blocks} blocks")
        if ends[-1] > len(content):
            content += car[start + len(content) : position]
        yield _Piece(content, start, np.array(begins, np.int64), np.array(ends, np.int64))


def _frame(content: bytes, stop: int, position: int = 0) -> tuple[list[int], list[int]]:
    """Return where the sections that begin before `stop` begin, after their length, and end."""
    begins: list[int] = []
    ends: list[int] = []
    try:
        # A repository of a gigabyte has millions of sections, so all that is rare is left to another function.
        while position < stop:
            length = content[position]
            position += 1
            if length > 0x7F:
                high = content[position]
                if 0 < high < 0x80:
                    length += (high << 7) - 0x80
                    position += 1
                else:
                    length, position = read_varint(content, position - 1, len(content))
            begins.append(position)
            position += length
            ends.append(position)
    except (EOFError, IndexError):
        raise _truncated("block's length") from None
    except ValueError as error:
        raise RepoRejectedError(RepoFault.CORRUPT_BLOCK, f"a block's length is none: {error}") from None
    return begins, ends


def _with_repo_cids(piece: _Piece) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return the sections whose CIDs are of a form that repositories use, and these; check the others' CIDs."""
    begins, ends = piece.begins, piece.ends
    usual = ends - begins >= CID_BYTES
    cids = bytes_at(piece.content, begins[usual], CID_BYTES)
    prefixes = cids.view(np.uint32)[:, 0]
    known = (prefixes == _CBOR) | (prefixes == _RAW)
    usual[usual] = known
    if usual.all():
        return cids, begins, ends
    for section in np.flatnonzero(~usual).tolist():
        begin, end = int(begins[section]), int(ends[section])
        try:
            cid_length(piece.content, begin, end)
        except (EOFError, ValueError) as error:
            raise RepoRejectedError(
                RepoFault.CORRUPT_BLOCK, f"the section at byte {piece.start + begin} has no CID: {error}"
            ) from None
    return cids[known], begins[usual], ends[usual]


def _digests(content: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint8]:
    # In the order of the file this takes far less time than in the order of the tree.
    sha256 = hashlib.sha256
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    with memoryview(content) as view:
        return join_rows([sha256(view[start:end]).digest() for start, end in spans], _DIGEST_BYTES)


def _keys_of(cids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Make a number of each CID that depends on its codec and on the first bytes of its digest."""
    return np.ascontiguousarray(cids[:, _KEY]).view(np.uint64)[:, 0] ^ cids[:, _CODEC]


def _sorted_index(
    roots: tuple[bytes, ...],
    numbers: Sequence[int],
    sizes: Sequence[int],
    cids: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    corrupt: NDArray[np.uint8],
) -> CarIndex:
    marks = np.arange(len(sizes), dtype=np.uint64) * _MARK
    keys = _keys_of(cids)
    if len(sizes) > 1:
        keys ^= marks[np.cumsum(sizes).searchsorted(starts)]
    rows = keys.argsort(kind="stable").astype(np.int32)
    keys = keys[rows]
    [again] = (keys[1:] == keys[:-1]).nonzero()
    if len(again):
        # Blocks that stand in the file several times, which somebody could do millions of times.
        places = np.unique(np.concatenate([again, again + 1]))
        numbered = np.concatenate([keys[places, np.newaxis].view(np.uint8), cids[rows[places]]], axis=1)
        _, first = np.unique(numbered, axis=0, return_index=True)
        left_out = np.delete(places, first)
        rows, keys = np.delete(rows, left_out), np.delete(keys, left_out)
    return CarIndex(roots, np.array(numbers, np.int32), marks, cids, starts, ends, corrupt, keys, rows)


def _unsupported_link(cid: bytes) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, f"a link is of an unsupported kind: {cid.hex()[:80]}")


def _not_a_car(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.NOT_A_CAR, f"the file is not a CAR: {detail}")


def _truncated(part: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TRUNCATED, f"the file ends inside a {part}")


_CBOR, _RAW = np.frombuffer(DAG_CBOR_PREFIX + RAW_PREFIX, np.uint32)
