"""Columns of equally long values as matrices of bytes, one row per value, and back."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

Matrix: TypeAlias = npt.NDArray[np.uint8]


def matrix_of(values: pl.Series, width: int) -> Matrix:
    """Lay out a text or binary column, all of whose values have `width` bytes and none of which is null."""
    array = values.to_arrow()
    offsets, content = array.buffers()[1:]
    if array.type in (pa.large_string(), pa.large_binary()):
        first = int(np.frombuffer(offsets, np.int64, 1, array.offset * 8)[0])
    else:
        raise TypeError(f"a column is {array.type}")
    return np.frombuffer(content, np.uint8, len(array) * width, first).reshape(len(array), width)


def texts_of(matrix: Matrix) -> pl.Series:
    """Make a text column of the rows of a matrix, which must be UTF-8."""
    rows, width = matrix.shape
    offsets = np.arange(rows + 1, dtype=np.int64) * width
    content = np.ascontiguousarray(matrix)
    return pl.Series(pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(content)))
