"""A CAR's bytes: in memory, or a file that is mapped into it and may be larger than the memory a worker may take.

Nothing here lets a view of the bytes out: a mapped file cannot be closed while one is left.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CarBytes: TypeAlias = bytes | mmap.mmap

# A mapped file counts as memory as far as it was read. One of this size may stay.
_MAPPED_BYTES = 64 * 2**20


def bytes_at(car: CarBytes, starts: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Copy so many bytes from each of these positions, a row for each; all must lie within the file."""
    if not len(starts):
        return np.zeros((0, width), np.uint8)
    # Every run of so many bytes as one element, which overlap.
    runs = np.ndarray(len(car) - width + 1, f"V{width}", car, strides=1)
    return runs[starts].view(np.uint8).reshape(-1, width)


def slices_of(car: CarBytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[bytes]:
    """Copy the bytes between these positions."""
    return [car[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def join_rows(rows: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    """Put byte strings of one width into an array, a row for each."""
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), width)


def forget(car: CarBytes) -> None:
    """Give back the memory that reading a large mapped file took; what is read again comes from the disk's cache."""
    if isinstance(car, mmap.mmap) and len(car) > _MAPPED_BYTES:
        car.madvise(mmap.MADV_DONTNEED)
