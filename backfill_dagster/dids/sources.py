"""Reads the entries of a study's source, in batches: what they are worth is judged in `syntax.py`.

A source is opened for reading only. Whatever keeps it from being read raises SourceError with the field of
the YAML and the path.
"""

from __future__ import annotations

import glob
import sqlite3
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, assert_never
from urllib.parse import quote

import polars as pl

from backfill_dagster.config import (
    CsvSource,
    InlineSource,
    ParquetSource,
    Source,
    SqliteSource,
    TextSource,
)
from backfill_dagster.errors import SourceError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import BinaryIO

BATCH_ROWS = 65_536
# A longer line is cut: it is no DID, and may be a file of another kind altogether.
_MAX_LINE_BYTES = 16_384
_SQLITE_TIMEOUT = 30.0
# Bytes 18 and 19 of an SQLite file are 2 if it is in write-ahead mode (SQLite file format, section 1.3.3).
_WAL_VERSIONS = b"\x02\x02"
_DAMAGED = (pl.exceptions.PolarsError, OSError, UnicodeError)


def read_batches(source: Source) -> Iterator[pl.Series]:
    """Yield the source's entries in their order, as text in series of at most BATCH_ROWS; null where empty.

    Raises SourceError, at the latest when the source is read to where it cannot be.
    """
    match source:
        case InlineSource():
            yield _texts(source.dids)
        case TextSource():
            yield from _read_text(source.path)
        case CsvSource():
            yield from _read_csv(source.path, source.column)
        case ParquetSource():
            yield from _read_parquet(source.path, source.column)
        case SqliteSource():
            yield from _read_sqlite(source.path, source.query)
        case _:
            assert_never(source)


def describe(source: Source) -> str:
    """Name a source for a message: its field in the YAML, and its path if it has one."""
    if isinstance(source, InlineSource):
        return "backfill.source.dids"
    return _field("path", source.path)


def source_stamp(source: Source) -> str:
    """Return what changes whenever the source may have changed, without reading it.

    Of files: their names, sizes and times. Raises SourceError if there is none.
    """
    if isinstance(source, InlineSource):
        return repr(source.dids)
    files = _matching_files(source.path) if isinstance(source, ParquetSource) else [source.path]
    if isinstance(source, SqliteSource):
        # What is committed in write-ahead mode may stand in the log alone.
        files = [*files, source.path.with_name(f"{source.path.name}-wal")]
    _require_file(files[0])
    stamps = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files if (stat := _stat(file))]
    return repr((source.model_dump(mode="json"), stamps))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _field(name: str, value: object) -> str:
    return f"backfill.source.{name} = {str(value)!r}"


def _texts(values: list[str] | tuple[str, ...]) -> pl.Series:
    return pl.Series("entry", values, dtype=pl.String)


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise SourceError(f"{_field('path', path)}: is a directory, not a file")
    if not path.exists():
        raise SourceError(f"{_field('path', path)}: there is no such file (looked for {path.absolute()})")


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise SourceError(f"{_field('path', path)}: cannot be read as {kind}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- text ---


def _read_text(path: Path) -> Iterator[pl.Series]:
    _require_file(path)
    with _reading(path, "text"), path.open("rb") as file:
        lines = _lines(file)
        while batch := list(islice(lines, BATCH_ROWS)):
            yield _texts(batch)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines that are neither empty nor a comment; a byte that is no UTF-8 makes its line no DID."""
    continued = False
    first = True
    while line := file.readline(_MAX_LINE_BYTES):
        ended = line.endswith(b"\n")
        text = "" if continued else line.decode("utf-8-sig" if first else "utf-8", "replace").strip()
        if text and not text.startswith("#"):
            yield text
        continued, first = not ended, False


# --- CSV and Parquet ---


def _read_csv(path: Path, column: str) -> Iterator[pl.Series]:
    _require_file(path)
    with _reading(path, "CSV"):
        # All columns are text, so that nothing in the others can keep the file from being read.
        table = pl.scan_csv(
            path, infer_schema=False, encoding="utf8-lossy", glob=False, truncate_ragged_lines=True
        )
        yield from _column(table, path, column)


def _read_parquet(path: Path, column: str) -> Iterator[pl.Series]:
    for file in _matching_files(path):
        with _reading(file, "Parquet"):
            yield from _column(pl.scan_parquet(file, glob=False), file, column)


def _matching_files(path: Path) -> list[Path]:
    if path.exists() or not glob.has_magic(str(path)):
        _require_file(path)
        return [path]
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
    if not files:
        raise SourceError(f"{_field('path', path)}: no file matches (looked for {path.absolute()})")
    return files


def _column(table: pl.LazyFrame, path: Path, column: str) -> Iterator[pl.Series]:
    schema = table.collect_schema()
    if column not in schema:
        names = ", ".join(map(repr, schema.names())) or "none"
        raise SourceError(f"{_field('column', column)}: {path} has no such column; its columns are {names}")
    kind = schema[column]
    if kind not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        raise SourceError(f"{_field('column', column)}: must be a column of text; in {path} it is {kind}")
    # The name goes through `select` as a name: `pl.col` would read `^...$` as a pattern.
    entries = table.select(pl.nth(schema.names().index(column)).cast(pl.String).alias("entry"))
    for batch in entries.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        # A batch may be larger than what was asked for.
        yield from (part["entry"] for part in batch.iter_slices(BATCH_ROWS))


# --- SQLite ---


def _read_sqlite(path: Path, query: str) -> Iterator[pl.Series]:
    _require_file(path)
    with _sqlite_errors(path, query), closing(_open_sqlite(path)) as database:
        cursor = database.execute(query)
        columns = [name for name, *_ in cursor.description or ()]
        if "did" not in columns:
            names = ", ".join(map(repr, columns)) or "none"
            raise SourceError(
                f"{_field('query', query)}: the result has no column 'did'; its columns are {names}. "
                "Name one with `SELECT ... AS did`"
            )
        position = columns.index("did")
        while rows := cursor.fetchmany(BATCH_ROWS):
            yield pl.Series("entry", [_as_text(row[position]) for row in rows], dtype=pl.String)


def _open_sqlite(path: Path) -> sqlite3.Connection:
    # Even a reader makes files beside a database in write-ahead mode. Without a log there is no writer
    # either, and the database can be read as one that does not change.
    with path.open("rb") as file:
        write_ahead = file.read(20)[18:20] == _WAL_VERSIONS
    log, index = (path.with_name(f"{path.name}-{suffix}") for suffix in ("wal", "shm"))
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


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _decode(value) if isinstance(value, bytes) else str(value)


@contextmanager
def _sqlite_errors(path: Path, query: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        if any(word in str(error) for word in ("authoriz", "readonly")):
            raise SourceError(f"{_field('query', query)}: may only read: {_one_line(error)}") from error
        raise SourceError(
            f"{_field('query', query)}: failed on {_field('path', path)}: {_one_line(error)}"
        ) from error
    except OSError as error:
        raise SourceError(f"{_field('path', path)}: cannot be read: {_one_line(error)}") from error
