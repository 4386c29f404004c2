"""Framing of CAR files, version 1: which blocks are sound and where they lie, decoding none.

https://ipld.io/specs/transport/car/carv1/. There is no trailer, so a file that was cut between two blocks looks
whole from here: only the walk of the tree proves that nothing is missing.

A large repository has millions of blocks, so what is known of them is held in arrays: some 30 bytes for each, where
Python's objects would take several hundred.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from cbrrr import CID, decode_dag_cbor

from backfill_dagster.repos.car_bytes import bytes_at, forget, join_rows
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
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from backfill_dagster.repos.car_bytes import CarBytes

# A header with one root has 58 bytes. What claims far more is some other format.
_MAX_HEADER_BYTES = 8192
# CBOR's first byte of a map whose length is stated.
_MAP_HEADS = range(0xA0, 0xBC)
# What is looked at together, unless a single section is larger.
_BYTES_AT_ONCE = 8 * 2**20
_DIGEST_BYTES = CID_BYTES - PREFIX_BYTES
# Positions in the CID, from its start: the codec, and the digest's first bytes.
_CODEC, _KEY = 1, slice(PREFIX_BYTES, PREFIX_BYTES + 8)


@dataclass(frozen=True, slots=True, eq=False)
class CarIndex:
    """The CAR's root, and where its blocks lie, in bytes from the start of the file and in the order of the file.

    `starts` and `ends` are of the blocks that have the hash of their CID, which is the 36 bytes before the start.
    `corrupt` are the starts of those that have not. Only CIDs of the form that repositories use are in either.
    `keys`, ascending, are numbers made of the sound blocks' CIDs, each CID once, and `rows` the blocks they are of.
    """

    root: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    corrupt: NDArray[np.int64]
    keys: NDArray[np.uint64]
    rows: NDArray[np.int32]

    def find(self, car: CarBytes, cids: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the blocks of these CIDs (one of 36 bytes per row), as positions in `starts` and `ends`.

        Raises RepoRejectedError: missing_block, corrupt_block, or bad_tree if a CID has another form than
        repositories use.
        """
        if not len(self.keys):
            return np.array([self._find_one(car, cid) for cid in cids], np.int32)
        places = self.keys.searchsorted(_keys_of(cids))
        rows = self.rows[np.minimum(places, len(self.keys) - 1)]
        found = bytes_at(car, self.starts[rows] - CID_BYTES, CID_BYTES)
        if found.tobytes() != cids.tobytes():
            for row in np.flatnonzero((found != cids).any(axis=1)).tolist():
                rows[row] = self._find_one(car, cids[row])
        return rows

    def span(self, car: CarBytes, cid: bytes) -> tuple[int, int]:
        """Return where one block begins and ends; raises as `find` does."""
        if len(cid) != CID_BYTES:
            raise _unsupported_link(cid)
        [row] = self.find(car, join_rows([cid], CID_BYTES))
        return int(self.starts[row]), int(self.ends[row])

    def _find_one(self, car: CarBytes, cid: NDArray[np.uint8]) -> int:
        [key], text = _keys_of(cid[np.newaxis]), cid.tobytes()
        # Numbers of two CIDs can be equal: nobody meets that by chance, but it can be brought about.
        first, after = (int(np.searchsorted(self.keys, key, side)) for side in ("left", "right"))
        for row in self.rows[first:after].tolist():
            start = int(self.starts[row])
            if car[start - CID_BYTES : start] == text:
                return int(row)
        if not is_repo_cid(text):
            raise RepoRejectedError(
                RepoFault.BAD_TREE, f"a link is of an unsupported kind: {text.hex()[:80]}"
            )
        if (bytes_at(car, self.corrupt - CID_BYTES, CID_BYTES) == cid).all(axis=1).any():
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
    starts, ends, corrupt, keys = [], [], [_NO_POSITIONS], []
    for sections, after in _sections(car, position, max_blocks):
        begin, end = _with_repo_cids(car, sections, after)
        cids = bytes_at(car, begin - CID_BYTES, CID_BYTES)
        sound = (_digests(car, begin, end) == cids[:, PREFIX_BYTES:]).all(axis=1)
        starts.append(begin[sound])
        ends.append(end[sound])
        corrupt.append(begin[~sound])
        keys.append(_keys_of(cids[sound]))
        forget(car)
    return _sorted_index(car, root, *map(np.concatenate, (starts, ends, corrupt, keys)))


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


def _sections(
    car: CarBytes, position: int, max_blocks: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield where sections begin, after their length, and where they end; some megabytes of them at once."""
    size, sections = len(car), 0
    while True:
        begins: list[int] = []
        ends: list[int] = []
        stop = min(size, position + _BYTES_AT_ONCE)
        try:
            # A repository of a gigabyte has millions of sections, so all that is rare is left to other functions.
            while position < stop:
                length = car[position]
                position += 1
                if length > 0x7F:
                    high = car[position]
                    if 0 < high < 0x80:
                        length += (high << 7) - 0x80
                        position += 1
                    else:
                        length, position = read_varint(car, position - 1, size)
                begins.append(position)
                position += length
                ends.append(position)
        except (EOFError, IndexError):
            raise _truncated("block's length") from None
        except ValueError as error:
            raise RepoRejectedError(RepoFault.CORRUPT_BLOCK, f"a block's length is none: {error}") from None
        if position > size:
            raise _truncated("block")
        sections += len(begins)
        if sections > max_blocks:
            raise RepoRejectedError(RepoFault.TOO_LARGE, f"the CAR has more than {max_blocks} blocks")
        yield np.array(begins, np.int64), np.array(ends, np.int64)
        if position == size:
            return


def _with_repo_cids(
    car: CarBytes, begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and end of the blocks whose CIDs are of a form that repositories use; check the others' CIDs."""
    usual = ends - begins >= CID_BYTES
    prefixes = bytes_at(car, begins[usual], PREFIX_BYTES).view(np.uint32)[:, 0]
    usual[usual] = np.isin(prefixes, _PREFIXES)
    for section in np.flatnonzero(~usual).tolist():
        _check_other_cid(car, int(begins[section]), int(ends[section]))
    return begins[usual] + CID_BYTES, ends[usual]


def _check_other_cid(car: CarBytes, position: int, end: int) -> None:
    """Refuse a section without a whole CID of whatever kind."""
    try:
        cid_length(car, position, end)
    except (EOFError, ValueError) as error:
        raise RepoRejectedError(
            RepoFault.CORRUPT_BLOCK, f"the section at byte {position} has no CID: {error}"
        ) from None


def _digests(car: CarBytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint8]:
    # In the order of the file this takes far less time than in the order of the tree.
    sha256 = hashlib.sha256
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    with memoryview(car) as view:
        return join_rows([sha256(view[start:end]).digest() for start, end in spans], _DIGEST_BYTES)


def _keys_of(cids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Make a number of each CID that depends on its codec and on the first bytes of its digest."""
    return np.ascontiguousarray(cids[:, _KEY]).view(np.uint64)[:, 0] ^ cids[:, _CODEC]


def _sorted_index(
    car: CarBytes,
    root: bytes,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    corrupt: NDArray[np.int64],
    keys: NDArray[np.uint64],
) -> CarIndex:
    rows = np.argsort(keys, kind="stable").astype(np.int32)
    keys = keys[rows]
    again = np.flatnonzero(keys[1:] == keys[:-1])
    if len(again):
        # Blocks that stand in the file several times, which somebody could do millions of times.
        places = np.unique(np.concatenate([again, again + 1]))
        cids = bytes_at(car, starts[rows[places]] - CID_BYTES, CID_BYTES)
        _, first = np.unique(cids, axis=0, return_index=True)
        left_out = np.delete(places, first)
        rows, keys = np.delete(rows, left_out), np.delete(keys, left_out)
    return CarIndex(root, starts, ends, corrupt, keys, rows)


def _unsupported_link(cid: bytes) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.BAD_TREE, f"a link is of an unsupported kind: {cid.hex()[:80]}")


def _not_a_car(detail: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.NOT_A_CAR, f"the file is not a CAR: {detail}")


def _truncated(part: str) -> RepoRejectedError:
    return RepoRejectedError(RepoFault.TRUNCATED, f"the file ends inside a {part}")


_NO_POSITIONS = np.zeros(0, np.int64)
_PREFIXES = np.frombuffer(DAG_CBOR_PREFIX + RAW_PREFIX, np.uint32)
