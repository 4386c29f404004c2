"""Records of the same shape, read all at once instead of one by one.

Nearly all likes, reposts, follows and blocks of a kind are the same bytes but for a few stretches of a few strings:
the account and the key in a URI, a CID, a time. Of blocks of one length one is decoded like any other record, as an
example; its shape is every byte outside of those stretches. Blocks of the same shape are then rows of a matrix of
bytes, and a column of text is cut out of it at once.

That this reads what a decoder would read rests on three things:

- A slot is the whole content of one string that is a value, no key, and its place is not guessed: as that content
  stands in the block only once, it stands there.
- A block is of a shape only if it has the same length, the same bytes outside of what may vary in the slots, and
  there only characters of ASCII which the slot's form allows. CBOR says how long a string is before the string, so
  that no content can change where anything else begins, or what it is; ASCII is valid UTF-8; keys and their order,
  numbers, links and byte strings are outside of the slots.
- JSON writes these characters as they are, so that a record's JSON is that of the example with markers for those
  strings, and its own strings in the markers' places.

A form is chosen so that any string of it is a sound one: where the example's has no issue, none has. Only times are
of any form, since they are judged by themselves.

Whatever is of no shape that many others share is left to be decoded alone, as are blocks in which the tag of a link
could begin, or that have a map key which JSON reserves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from backfill_dagster.records import syntax
from backfill_dagster.records.blocks import Record, decode_blocks
from backfill_dagster.records.byte_matrix import Matrix, matrix_of, texts_of
from backfill_dagster.records.fields import no_texts
from backfill_dagster.records.record_json import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import polars as pl

Positions: TypeAlias = npt.NDArray[np.int64]
Stretch: TypeAlias = tuple[int, int]

# To find a shape and to cut it out takes as long as to read a few hundred records one by one.
MIN_ALIKE = 256
# Beyond this length records are posts, or none of the usual ones.
_MAX_BYTES = 1024
# How many records of one length are tried as an example.
_MAX_TRIES = 4

# A marker must not be found by chance, nor overlap with itself.
_MIN_SLOT_BYTES = 8
_FIRST_LETTER = ord("A")
# What the tag of a link (tag 42 of CBOR, in each of its forms) begins with, and the keys that JSON reserves.
_UNFIT = (b"\xd8", b"\xd9", b"\xda", b"\xdb", b"$link", b"$bytes")
# Of these characters JSON escapes the backslash only.
_FIRST_PLAIN, _LAST_PLAIN, _BACKSLASH = ord("#"), ord("~"), ord("\\")
# As many blocks as the processor's cache holds.
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Form:
    """A form of strings: a pattern, and the groups of it in which strings of the form may differ from one another.

    These hold lower-case letters and digits; or, in a form of plain text, whatever JSON writes as it is.
    """

    pattern: re.Pattern[str]
    varying: tuple[str, ...]
    is_plain_text: bool = False


# Any lower-case letters and digits make a DID, a record key or a CID (which needs eight of them).
DID_FORM = Form(re.compile(r"did:plc:(?P<account>[a-z0-9]+)"), ("account",))
URI_FORM = Form(
    re.compile(
        rf"at://(?P<did>did:plc:(?P<account>[a-z0-9]+))/(?P<collection>{syntax.NSID})/(?P<rkey>[a-z0-9]{{1,512}})"
    ),
    ("account", "rkey"),
)
CID_FORM = Form(re.compile(rf"(?P<cid>[a-z0-9]{{8,{syntax.MAX_CID_BYTES}}})"), ("cid",))
PLAIN_FORM = Form(re.compile(r"(?P<text>[#-\[\]-~]+)"), ("text",), is_plain_text=True)


@dataclass(frozen=True, slots=True)
class Slot:
    """A string of a record that differs from one to the next: its path, its form, and its columns.

    Each column is made of a group of the form (0 for the whole). If there are any, the string must be there in this
    form, unless it is optional and the field that it is in is absent.
    """

    path: tuple[str, ...]
    form: Form
    columns: Mapping[str, str | int] = field(default_factory=dict)
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What is common to blocks of one length, and where they differ.

    Bytes at `varying` (start, end) are lower-case letters and digits, those at `plain` anything that JSON writes as
    it is; all others are the example's. `columns` says which bytes each column is made of. `json` is the example's,
    with the bytes of the block at `json_slots` (start in `json`, start, end) in it.
    """

    block: Matrix
    varying: tuple[Stretch, ...]
    plain: tuple[Stretch, ...]
    columns: Mapping[str, Stretch]
    json: Matrix
    json_slots: tuple[tuple[int, int, int], ...]

    def matches(self, matrix: Matrix) -> npt.NDArray[np.bool_]:
        """Tell which rows are blocks of this shape."""
        # Every byte must lie in one range and outside of another. Whole rows at once: many short stretches take longer.
        lowest, span = self.block.copy(), np.zeros_like(self.block)
        gap, gap_span = self.block + np.uint8(1), np.full_like(self.block, 254)
        for start, end in self.varying:
            lowest[start:end], span[start:end] = ord("0"), ord("z") - ord("0")
            gap[start:end], gap_span[start:end] = ord("9") + 1, ord("a") - ord("9") - 2
        for start, end in self.plain:
            lowest[start:end], span[start:end] = _FIRST_PLAIN, _LAST_PLAIN - _FIRST_PLAIN
            gap[start:end], gap_span[start:end] = _BACKSLASH, 0
        found = np.empty(len(matrix), np.bool_)
        for first in range(0, len(matrix), _ROWS_AT_ONCE):
            rows = matrix[first : first + _ROWS_AT_ONCE]
            # Below the lowest, bytes wrap around to large ones.
            is_allowed = (rows - lowest) <= span
            is_allowed &= (rows - gap) > gap_span
            is_allowed.all(axis=1, out=found[first : first + _ROWS_AT_ONCE])
        return found

    def texts(self, column: str, matrix: Matrix) -> pl.Series:
        """Return a column of each block of this shape; null if its records have none."""
        if column not in self.columns:
            return no_texts(len(matrix))
        start, end = self.columns[column]
        return texts_of(matrix[:, start:end])

    def as_json(self, matrix: Matrix) -> pl.Series:
        """Return the JSON of each block of this shape."""
        texts = np.empty((len(matrix), len(self.json)), np.uint8)
        texts[:] = self.json
        for at, start, end in self.json_slots:
            texts[:, at : at + end - start] = matrix[:, start:end]
        return texts_of(texts)


def find_alike(
    blocks: pl.Series, collection: str, slots: Sequence[Slot]
) -> Iterator[tuple[Shape, Positions, Matrix]]:
    """Find blocks that share a shape with many others: the shape, their positions in ascending order, their bytes."""
    if len(blocks) < MIN_ALIKE:
        return
    sizes = blocks.bin.size().to_numpy()
    lengths, counts = np.unique(sizes, return_counts=True)
    for length in lengths[(counts >= MIN_ALIKE) & (lengths <= _MAX_BYTES)].tolist():
        positions = np.flatnonzero(sizes == length)
        matrix = matrix_of(blocks.gather(positions), length)
        for _ in range(_MAX_TRIES):
            if len(positions) < MIN_ALIKE:
                break
            # Neighbours are of one account, which may have had an odd client; from the middle on there are others.
            example = len(matrix) // 2
            shape = shape_of(matrix[example].tobytes(), collection, slots)
            is_same = np.zeros(len(matrix), np.bool_) if shape is None else shape.matches(matrix)
            if shape is not None and is_same.all():
                yield shape, positions, matrix
                break
            if shape is not None and is_same.sum() >= MIN_ALIKE:
                yield shape, positions[is_same], matrix[is_same]
            is_same[example] = True
            positions, matrix = positions[~is_same], matrix[~is_same]


def shape_of(block: bytes, collection: str, slots: Sequence[Slot]) -> Shape | None:
    """Return the shape of a record of a collection; None if it has none, or something about it is amiss."""
    if any(mark in block for mark in _UNFIT):
        return None
    record = _decode(block)
    if record is None or record.get("$type") != collection:
        return None
    varying: list[Stretch] = []
    plain: list[Stretch] = []
    columns: dict[str, Stretch] = {}
    markers: dict[str, Stretch] = {}
    for slot in slots:
        text = _text_at(record, slot.path)
        found = None if text is None else slot.form.pattern.fullmatch(text)
        if found is None or len(found[0]) < _MIN_SLOT_BYTES or block.count(found[0].encode()) != 1:
            if slot.columns and not (slot.is_optional and slot.path[0] not in record):
                return None
            continue
        start = block.index(found[0].encode())
        marker = f"<{chr(_FIRST_LETTER + len(markers)) * (len(found[0]) - 2)}>"
        record = _replaced(record, slot.path, marker)
        markers[marker] = start, start + len(found[0])
        stretches = [(start + found.start(group), start + found.end(group)) for group in slot.form.varying]
        (plain if slot.form.is_plain_text else varying).extend(stretches)
        columns |= {
            column: (start + found.start(group), start + found.end(group))
            for column, group in slot.columns.items()
        }
    json = to_json(record)
    if any(json.count(marker.encode()) != 1 for marker in markers):
        return None
    return Shape(
        block=np.frombuffer(block, np.uint8),
        varying=tuple(varying),
        plain=tuple(plain),
        columns=columns,
        json=np.frombuffer(json, np.uint8),
        json_slots=tuple((json.index(marker.encode()), *stretch) for marker, stretch in markers.items()),
    )


def _decode(block: bytes) -> Record | None:
    records, _ = decode_blocks([block], [False])
    return records[0] if records else None


def _text_at(record: Record, path: tuple[str, ...]) -> str | None:
    value: Any = record
    for key in path:
        value = value.get(key) if type(value) is dict else None
    return value if type(value) is str else None


def _replaced(record: Record, path: tuple[str, ...], text: str) -> Record:
    """Return a copy of a record with another text in a place where it has one."""
    key, *inner = path
    return {**record, key: _replaced(record[key], tuple(inner), text) if inner else text}
