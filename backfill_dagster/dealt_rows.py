"""Rows that are dealt out to lots in a scratch file and read back lot by lot, so that memory is bounded by a lot."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Self

import polars as pl
import pyarrow as pa

from backfill_dagster.errors import StorageError
from backfill_dagster.storage import arrow_table
from backfill_dagster.stores.local import writing

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class DealtRows:
    """Rows of one schema in a file of this process's own: first all are added, each under its lot, then lots are read.

    A context manager, which closes the file and leaves it where it is: in a folder that is scratch. Raises
    StorageError.
    """

    def __init__(self, path: Path, schema: pl.Schema) -> None:
        self._path = path
        self._schema = schema
        self._batches: defaultdict[Hashable, list[int]] = defaultdict(list)
        self._rows: defaultdict[Hashable, int] = defaultdict(int)
        self._written = 0
        self._arrow_schema = arrow_table(schema.to_frame()).schema
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        with writing(path):
            self._file = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_file(self._file, self._arrow_schema, options=_OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def rows_of(self) -> dict[Hashable, int]:
        """How many rows each lot has, of those that have any."""
        return dict(self._rows)

    def rows_in(self, lot: Hashable) -> int:
        """Return how many rows a lot has."""
        return self._rows.get(lot, 0)

    def add(self, lot: Hashable, rows: pl.DataFrame) -> None:
        """Add rows to a lot, behind those that it has."""
        if rows.is_empty():
            return
        with writing(self._path):
            for batch in arrow_table(rows.select(self._schema.names())).combine_chunks().to_batches():
                self._writer.write_batch(batch)
                self._batches[lot].append(self._written)
                self._written += 1
        self._rows[lot] += rows.height

    def parts_of(self, lot: Hashable) -> Iterator[pl.DataFrame]:
        """Yield a lot's rows in the parts, and the order, in which they were added. Nothing can be added any more."""
        for number in self._batches.get(lot, ()):
            yield self._frame([number])

    def of(self, lot: Hashable) -> pl.DataFrame:
        """Return all rows of a lot."""
        return self._frame(self._batches.get(lot, ()))

    def _frame(self, numbers: Iterable[int]) -> pl.DataFrame:
        try:
            batches = [self._opened().get_batch(number) for number in numbers]
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{self._path} cannot be read: {error}") from error
        table = pa.Table.from_batches(batches, self._arrow_schema)
        return pl.DataFrame(pl.from_arrow(table), schema=self._schema)

    def _opened(self) -> pa.ipc.RecordBatchFileReader:
        if self._reader is None:
            with writing(self._path):
                self._writer.close()
                self._file.close()
                # Not mapped into memory: what has been read would count as the process's own.
                self._file = pa.OSFile(str(self._path), "rb")
            self._reader = pa.ipc.open_file(self._file)
        return self._reader
