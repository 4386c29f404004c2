"""Local files with entries in them, read column by column in batches; S3 objects are read the same once they are local.

A file is opened for reading only. Whatever keeps it from being read raises SourceError with the field of the YAML and
the path.
"""

from __future__ import annotations

import glob
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import polars as pl

from backfill_dagster.dids.entries import BATCH_ROWS
from backfill_dagster.errors import SourceError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from backfill_dagster.config.sources import FileFormat

    # As SQLite takes them: by name, or by position.
    Parameters = dict[str, str | int | float | None] | tuple[str | int | float | None, ...]

# A longer line is cut: it is no DID, and may be a file of another kind altogether.
_MAX_LINE_BYTES = 16_384
_SQLITE_TIMEOUT = 30.0
# Bytes 18 and 19 of an SQLite file are 2 if it is in write-ahead mode (SQLite file format, section 1.3.3).
_WAL_VERSIONS = b"\x02\x02"
_DAMAGED = (pl.exceptions.PolarsError, OSError, UnicodeError)
_TEXT = (pl.String, pl.Categorical, pl.Enum, pl.Null)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read: where it lies, its source's field in the YAML, and what messages call it.

    `place` is the field that names it and its value, `name` the value alone; for an object of S3 both say its address.
    """

    path: Path
    field: str
    place: str
    name: str

    @classmethod
    def local(cls, path: Path, field: str) -> SourceFile:
        """Name a file that the YAML names."""
        return cls(path, field, f"{field}.path = {str(path)!r}", str(path))


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns to read as text: their names, and the field of the YAML that names them.

    With `any_type`, numbers and times are turned into text, the latter as ISO 8601; else they are refused.
    """

    names: tuple[str, ...]
    field: str
    any_type: bool = False

    def missing(self, name: str, file: SourceFile, there: Iterable[str]) -> SourceError:
        """Make the error for a column that is not there, of those that are."""
        known = ", ".join(map(repr, there)) or "none"
        return SourceError(
            f"{self.field} = {name!r}: {file.name} has no such column; its columns are {known}"
        )


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of an SQLite file."""

    text: str
    parameters: Parameters = ()


def read_file(
    file: SourceFile, kind: FileFormat, columns: Columns, query: Query | None = None
) -> Iterator[pl.DataFrame]:
    """Yield columns of a file of some format as text, in batches of at most BATCH_ROWS; null where empty."""
    if kind == "text":
        return read_text(file, columns)
    if kind == "csv":
        return read_csv(file, columns)
    if kind == "parquet":
        return read_parquet(file, columns)
    return read_sqlite(file, query or Query("SELECT did FROM dids"), columns)


def require_file(file: SourceFile) -> None:
    """Raise SourceError unless there is such a file."""
    if file.path.is_dir():
        raise SourceError(f"{file.place}: is a directory, not a file")
    if not file.path.exists():
        raise SourceError(f"{file.place}: there is no such file (looked for {file.path.absolute()})")


def matching_files(path: Path, field: str) -> list[SourceFile]:
    """Return the files that a path or glob names, sorted; raises SourceError if there is none."""
    if path.exists() or not glob.has_magic(str(path)):
        file = SourceFile.local(path, field)
        require_file(file)
        return [file]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
    if not found:
        raise SourceError(
            f"{SourceFile.local(path, field).place}: no file matches (looked for {path.absolute()})"
        )
    return [SourceFile.local(match, field) for match in found]


def files_stamp(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return the names, sizes and times of those of these files that are there."""
    return [
        (str(path), stat.st_size, stat.st_mtime_ns) for path in paths if (stat := _stat(path)) is not None
    ]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


@contextmanager
def reading(file: SourceFile, kind: str) -> Iterator[None]:
    """Raise SourceError for whatever reading a file raises."""
    try:
        yield
    except _DAMAGED as error:
        raise SourceError(f"{file.place}: cannot be read as {kind}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the beginning of what an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- text ---


def read_text(file: SourceFile, columns: Columns) -> Iterator[pl.DataFrame]:
    """Yield the lines of a text file that are neither empty nor a comment, as the one column that is asked for."""
    require_file(file)
    if len(columns.names) != 1:
        raise SourceError(
            f"{file.place}: a text file has one entry a line, not the columns {', '.join(columns.names)}"
        )
    with reading(file, "text"), file.path.open("rb") as content:
        lines = _lines(content)
        while batch := list(islice(lines, BATCH_ROWS)):
            yield pl.DataFrame({columns.names[0]: batch}, schema={columns.names[0]: pl.String})


def _lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines that say something; a byte that is no UTF-8 makes its line no DID."""
    continued = False
    first = True
    while line := file.readline(_MAX_LINE_BYTES):
        ended = line.endswith(b"\n")
        text = "" if continued else line.decode("utf-8-sig" if first else "utf-8", "replace").strip()
        if text and not text.startswith("#"):
            yield text
        continued, first = not ended, False


# --- CSV and Parquet ---


def read_csv(file: SourceFile, columns: Columns) -> Iterator[pl.DataFrame]:
    """Yield columns of a CSV file with a header."""
    require_file(file)
    with reading(file, "CSV"):
        # All columns are text, so that nothing in the others can keep the file from being read.
        table = pl.scan_csv(
            file.path, infer_schema=False, encoding="utf8-lossy", glob=False, truncate_ragged_lines=True
        )
        yield from table_batches(table, file, columns)


def read_parquet(file: SourceFile, columns: Columns) -> Iterator[pl.DataFrame]:
    """Yield columns of a Parquet file."""
    require_file(file)
    with reading(file, "Parquet"):
        yield from table_batches(pl.scan_parquet(file.path, glob=False), file, columns)


def table_batches(table: pl.LazyFrame, file: SourceFile, columns: Columns) -> Iterator[pl.DataFrame]:
    """Yield columns of a table that a file holds."""
    schema = table.collect_schema()
    chosen = [_as_text(schema, name, file, columns) for name in columns.names]
    for batch in table.select(chosen).collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        # A batch may be larger than what was asked for.
        yield from batch.iter_slices(BATCH_ROWS)


def _as_text(schema: pl.Schema, name: str, file: SourceFile, columns: Columns) -> pl.Expr:
    if name not in schema:
        raise columns.missing(name, file, schema.names())
    kind = schema[name]
    # By position: `pl.col` would read a name such as `^...$` as a pattern.
    column = pl.nth(schema.names().index(name))
    if kind in _TEXT:
        return column.cast(pl.String).alias(name)
    if not columns.any_type or kind.is_nested() or kind in (pl.Binary, pl.Object):
        raise SourceError(
            f"{columns.field} = {name!r}: must be a column of text; in {file.name} it is {kind}"
        )
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        column = column.dt.convert_time_zone("UTC")
    if kind.is_temporal():
        return column.dt.to_string("iso:strict" if isinstance(kind, pl.Datetime) else "iso").alias(name)
    return column.cast(pl.String).alias(name)


# --- SQLite ---


def write_ahead_log(path: Path) -> Path:
    """Return where a database in write-ahead mode keeps what was committed last."""
    return path.with_name(f"{path.name}-wal")


def read_sqlite(file: SourceFile, query: Query, columns: Columns) -> Iterator[pl.DataFrame]:
    """Yield columns of what a query gives, which may only read; other values than text are turned into it."""
    require_file(file)
    with _sqlite_errors(file, query), closing(_open_sqlite(file.path)) as database:
        cursor = database.execute(query.text, query.parameters)
        there = [name for name, *_ in cursor.description or ()]
        for name in columns.names:
            if name not in there:
                known = ", ".join(map(repr, there)) or "none"
                raise SourceError(
                    f"{file.field}.query = {query.text!r}: the result has no column {name!r}; its columns are {known}. "
                    f"Name one with `SELECT ... AS {name}`"
                )
        positions = {name: there.index(name) for name in columns.names}
        while rows := cursor.fetchmany(BATCH_ROWS):
            yield pl.DataFrame(
                pl.Series(name, [_value_as_text(row[position]) for row in rows], dtype=pl.String)
                for name, position in positions.items()
            )


def _open_sqlite(path: Path) -> sqlite3.Connection:
    # Even a reader makes files beside a database in write-ahead mode. Without a log there is no writer
    # either, and the database can be read as one that does not change.
    with path.open("rb") as file:
        write_ahead = file.read(20)[18:20] == _WAL_VERSIONS
    log, index = write_ahead_log(path), path.with_name(f"{path.name}-shm")
    at_rest = write_ahead and not index.exists() and not (log.exists() and log.stat().st_size)
    address = f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if at_rest else ''}"
    database = sqlite3.connect(address, uri=True, timeout=_SQLITE_TIMEOUT)
    database.text_factory = _decode
    database.execute("PRAGMA query_only = ON")
    # Neither that nor `mode=ro` keeps a query from attaching another file, or from writing one by VACUUM
    # INTO.
    database.set_authorizer(_refuse_attaching)
    return database


def _refuse_attaching(action: int, *_: object) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _value_as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _decode(value) if isinstance(value, bytes) else str(value)


@contextmanager
def _sqlite_errors(file: SourceFile, query: Query) -> Iterator[None]:
    asked = f"{file.field}.query = {query.text!r}"
    given = f"{file.field}.parameters = {query.parameters!r}"
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        if any(word in str(error) for word in ("authoriz", "readonly")):
            raise SourceError(f"{asked}: may only read: {one_line(error)}") from error
        if "binding" in str(error):
            raise SourceError(f"{given}: do not fit {asked}: {one_line(error)}") from error
        raise SourceError(f"{asked}: failed on {file.place}: {one_line(error)}") from error
    except (OverflowError, UnicodeError) as error:
        raise SourceError(f"{given}: SQLite cannot hold this: {one_line(error)}") from error
    except OSError as error:
        raise SourceError(f"{file.place}: cannot be read: {one_line(error)}") from error
