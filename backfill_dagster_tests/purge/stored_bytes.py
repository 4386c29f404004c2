"""Everything that a folder's files hold, as bytes: as they lie on disk, and unpacked."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def files_with(folder: Path, needle: str) -> list[str]:
    """Return the files below a folder that hold a text: in their name, their bytes, or a value of a Parquet file."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if needle in str(path.relative_to(folder))
        or (path.is_file() and any(needle.encode() in content for content in contents(path)))
    ]


def contents(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes and, of a Parquet file, its statistics and all values of each column."""
    yield path.read_bytes()
    if path.suffix != ".parquet":
        return
    with pq.ParquetFile(path) as file:
        yield str(file.metadata.to_dict()).encode()
        for batch in file.iter_batches():
            for column in batch.columns:
                yield from (buffer.to_pybytes() for buffer in _buffers(column))


def _buffers(column: pa.Array) -> list[pa.Buffer]:
    return [buffer for buffer in column.buffers() if buffer is not None]
