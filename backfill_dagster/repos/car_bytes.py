"""A CAR's bytes: in memory, or in a file that is larger than the memory a worker may take."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# A file of this size is read whole. Mapping it would be no better: what was read of a mapped file counts as memory,
# and to give it back page by page costs more than to read a block by itself.
WHOLE_FILE_BYTES = 128 * 2**20


class CarFile:
    """A file of which parts are read when they are asked for; it must not change meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self._size)
        return os.pread(self._descriptor, max(0, end - start), start)


CarBytes: TypeAlias = bytes | CarFile


@contextmanager
def open_car(path: Path) -> Iterator[CarBytes]:
    """Lend the content of a file; raises OSError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size <= WHOLE_FILE_BYTES:
            yield file.read()
        else:
            yield CarFile(file.fileno())


def slices_of(car: CarBytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[bytes]:
    """Copy the bytes between these positions."""
    return [car[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def sections_of(
    car: CarBytes, starts: NDArray[np.int64], ends: NDArray[np.int64], width: int
) -> tuple[NDArray[np.uint8], list[bytes]]:
    """Copy the so many bytes that stand before each start, a row for each; and those between start and end."""
    if isinstance(car, bytes):
        return bytes_at(car, starts - width, width), slices_of(car, starts, ends)
    # To read costs more than to cut.
    sections = slices_of(car, starts - width, ends)
    return join_rows([section[:width] for section in sections], width), [
        section[width:] for section in sections
    ]


def bytes_at(content: bytes, starts: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Copy so many bytes from each of these positions, a row for each; all must lie within the content."""
    if not len(starts):
        return np.zeros((0, width), np.uint8)
    # Every run of so many bytes as one element, which overlap.
    runs = np.ndarray(len(content) - width + 1, f"V{width}", content, strides=1)
    return runs[starts].view(np.uint8).reshape(-1, width)


def join_rows(rows: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    """Put byte strings of one width into an array, a row for each."""
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), width)
