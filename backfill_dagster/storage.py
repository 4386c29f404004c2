"""A study's files: Parquet (and a page to read) on a local disk, each written whole or not at all.

Every file is written under a temporary name in the study's scratch folder and then renamed, so that a reader sees
the old content or the new and a crash leaves at most scratch behind. Keys are relative paths with `/` between
their parts; each part is made here, and a name from the network passes `partition_folder` first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import quote, unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.work_cost import WorkClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

SCHEMA_VERSION = "1"
COMPRESSION_LEVEL = 1
_SCRATCH = ".scratch"
_PARTITION = "pds="
# Lazy frames that are read at once: Polars has a thread wait for each, and warns of thousands.
_FRAMES_AT_ONCE = 256
_PATH = "_path"
# More than a full disk has left when a write to it has failed.
_PROBE_BYTES = 2**20
# What is left free: Dagster's history, which as a rule is on the same disk, must be able to say that it is full.
HEADROOM_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What was written: its key, its rows, its size in bytes and its SHA-256 in hex."""

    key: str
    rows: int
    bytes: int
    sha256: str


def partition_folder(pds_host: str) -> str:
    """Return the folder of one PDS; a host (with its port) cannot leave it, whatever it is called."""
    return _PARTITION + quote(pds_host, safe="")


def partition_host(folder: str) -> str:
    """Return the PDS host whose folder this is: the inverse of `partition_folder`."""
    return unquote(folder.removeprefix(_PARTITION))


class StudyStorage:
    """The folder `<storage.path>/<name>/` of one study; its `clock` tells apart what is spent on writing to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = WorkClock()

    def path(self, key: str) -> Path:
        """Return where the file of this key lies; refuses a key that leaves the study's folder."""
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise StorageError(f"{key!r} is not a path below {self.root}")
        return self.root.joinpath(*parts)

    def exists(self, key: str) -> bool:
        """Tell whether the file of this key is there."""
        return self.path(key).is_file()

    def size(self, key: str) -> int:
        """Return the size of a stored file in bytes."""
        return self.path(key).stat().st_size

    def keys(self, prefix: str, pattern: str = "*.parquet") -> list[str]:
        """Return the sorted keys of the files below a prefix whose names match a pattern."""
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        found = (path.relative_to(self.root).as_posix() for path in folder.rglob(pattern) if path.is_file())
        return sorted(found)

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders right below a prefix."""
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if path.is_dir())

    def read(self, key: str) -> pl.DataFrame:
        """Read one file whole."""
        try:
            return pl.read_parquet(self.path(key), glob=False)
        except FileNotFoundError:
            raise StorageError(f"{self.path(key)} is missing; materialize the asset that writes it") from None
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StorageError(f"{self.path(key)} cannot be read: {error}") from error

    def scan(self, keys: Iterable[str], schema: Mapping[str, pl.DataType] | pl.Schema) -> pl.LazyFrame:
        """Return a lazy frame over files of one schema; columns that older files lack come as null."""
        return _scan([self.path(key) for key in keys], schema)

    def scan_named(
        self, names: Mapping[str, str], schema: Mapping[str, pl.DataType] | pl.Schema, column: str
    ) -> pl.LazyFrame:
        """Return a lazy frame over files, given by key with a name for each, which its rows have in another column.

        One scan of many files takes far less time and memory than a scan of each.
        """
        paths = [self.path(key) for key in names]
        named = {_PATH: [str(path) for path in paths], column: list(names.values())}
        of_path = pl.LazyFrame(named, schema=dict.fromkeys(named, pl.String))
        return _scan(paths, schema, _PATH).join(of_path, on=_PATH, maintain_order="left").drop(_PATH)

    def collect(
        self,
        frames: Sequence[pl.LazyFrame],
        keys: Iterable[str],
        *,
        engine: Literal["in-memory", "streaming"] = "in-memory",
    ) -> list[pl.DataFrame]:
        """Read lazy frames over these files; raises StorageError naming the first file that cannot be read.

        The streaming engine holds some row groups at a time, if what is asked of the rows allows it; to start it takes
        longer than to read a small file.
        """
        collected: list[pl.DataFrame] = []
        try:
            for first in range(0, len(frames), _FRAMES_AT_ONCE):
                collected += pl.collect_all(frames[first : first + _FRAMES_AT_ONCE], engine=engine)
        except (OSError, pl.exceptions.PolarsError) as error:
            for key in keys:
                self.read(key)
            raise StorageError(f"files below {self.root} cannot be read: {error}") from error
        return collected

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of a stored file's bytes, in hex."""
        with self.path(key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(
        self,
        key: str,
        frame: pl.DataFrame,
        metadata: Mapping[str, str] | None = None,
        *,
        row_group: int | None = None,
    ) -> StoredFile:
        """Write one frame as one file, replacing what was there; in groups of so many rows, or of Polars' choice."""
        with self.scratch() as folder:
            return self._write_from(folder, key, frame, metadata, row_group)

    def write_many(self, frames: Iterable[tuple[str, pl.DataFrame]]) -> Iterator[StoredFile]:
        """Write frames, each as one file with its key, one after the other; in less time than by themselves."""
        with self.scratch() as folder:
            for key, frame in frames:
                self.ensure_headroom()
                yield self._write_from(folder, key, frame)

    def _write_from(
        self,
        scratch: Path,
        key: str,
        frame: pl.DataFrame,
        metadata: Mapping[str, str] | None = None,
        row_group: int | None = None,
    ) -> StoredFile:
        local = scratch / "frame.parquet"
        try:
            with self.clock.writing():
                frame.write_parquet(
                    local,
                    compression="zstd",
                    compression_level=COMPRESSION_LEVEL,
                    row_group_size=row_group,
                    metadata={"schema_version": SCHEMA_VERSION, **(metadata or {})},
                )
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StorageError.unwritable(self.path(key), _cause_of(error, local)) from error
        return self.publish(local, key, rows=frame.height)

    def write_bytes(self, key: str, content: bytes) -> StoredFile:
        """Write one file that is no table, replacing what was there; it counts as having no rows."""
        with self.scratch() as folder:
            local = folder / "content"
            with _writing(self.path(key)):
                local.write_bytes(content)
            return self.publish(local, key, rows=0)

    def publish(self, local: Path, key: str, *, rows: int) -> StoredFile:
        """Move a finished scratch file to its key in one step."""
        target = self.path(key)
        with self.clock.writing(), _writing(target):
            with local.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            local.replace(target)
        return StoredFile(key=key, rows=rows, bytes=size, sha256=digest)

    def link(self, key: str, target: Path) -> None:
        """Make a file of this key that is another one by a link: what is written here takes the link's place."""
        path = self.path(key)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target.absolute())

    def remove(self, key: str) -> None:
        """Delete one file, if it is there."""
        path = self.path(key)
        with _writing(path):
            path.unlink(missing_ok=True)

    def remove_empty_folders(self, prefix: str) -> None:
        """Delete the folders below a prefix that hold nothing; only while nobody writes below it."""
        folder = self.path(prefix)
        inner = [path for path in folder.rglob("*") if path.is_dir()]
        for path in sorted(inner, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it holds something
                path.rmdir()

    def free_bytes(self) -> int | None:
        """Return how much may be written before the disk counts as full; None if it does not say."""
        try:
            usage = shutil.disk_usage(self.root)
        except OSError as error:
            raise StorageError(f"{self.root} cannot be read: {error}") from error
        # Some file systems that are no disks have no size.
        return max(0, usage.free - HEADROOM_BYTES) if usage.total else None

    def ensure_headroom(self) -> None:
        """Raise StorageError if the disk counts as full."""
        if self.free_bytes() == 0:
            raise StorageError(
                f"{self.root} cannot be written: fewer than {HEADROOM_BYTES // 2**20} MB are free on its disk; "
                "free some space, then run the same again: what is stored is whole"
            )

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Lend a folder on the same file system, gone when the block ends."""
        parent = self.root / _SCRATCH
        with _writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
            self.ensure_headroom()
            with _locked(parent, fcntl.LOCK_SH):
                folder = Path(tempfile.mkdtemp(dir=parent))
                owner = os.open(folder, os.O_RDONLY)
                fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(owner)

    def sweep_scratch(self) -> None:
        """Delete scratch whose owner is gone: a lent folder stays locked for as long as its process lives."""
        parent = self.root / _SCRATCH
        if not parent.is_dir():
            return
        with _writing(parent), _locked(parent, fcntl.LOCK_EX):
            for folder in parent.iterdir():
                # Held by a living process, or just now deleted by one.
                with (
                    suppress(BlockingIOError, FileNotFoundError),
                    _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def shared(self, prefix: str) -> Iterator[None]:
        """Hold a folder while files are published in it that belong together; others may do the same."""
        folder = self.path(prefix)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, fcntl.LOCK_SH):
            yield

    @contextmanager
    def alone(self, prefix: str) -> Iterator[None]:
        """Hold a folder, if there is one, while nobody publishes in it."""
        folder = self.path(prefix)
        with _locked(folder, fcntl.LOCK_EX) if folder.is_dir() else nullcontext():
            yield

    @contextmanager
    def held(self, prefix: str) -> Iterator[None]:
        """Hold a folder, made if there is none, while nobody else holds it or publishes in it."""
        folder = self.path(prefix)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with self.alone(prefix):
            yield


def _cause_of(error: Exception, scratch: Path) -> Exception:
    """Return why a scratch file could not be written: Polars does not always hand on what the system said."""
    try:
        with scratch.open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as cause:
        return cause
    return error


def _scan(
    paths: list[Path], schema: Mapping[str, pl.DataType] | pl.Schema, path_column: str | None = None
) -> pl.LazyFrame:
    """Scan files; a column for the path of each row's file is added if it has a name."""
    if not paths:
        return pl.LazyFrame(schema={**schema, **({path_column: pl.String()} if path_column else {})})
    return pl.scan_parquet(
        paths,
        glob=False,
        schema=pl.Schema(schema),
        missing_columns="insert",
        extra_columns="ignore",
        include_file_paths=path_column,
    )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say which file or folder it was that could not be changed."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError.unwritable(path, error) from error


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


class RowGroupWriter:
    """Writes one Parquet file row group by row group, so that memory is bounded by the group, not the file.

    A context manager: the file is whole when the block ends, or when it is closed. Raises StorageError.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        dictionary: Sequence[str],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        with _writing(path):
            self._writer = pq.ParquetWriter(
                path,
                schema.with_metadata({"schema_version": SCHEMA_VERSION, **(metadata or {})}),
                compression="zstd",
                compression_level=COMPRESSION_LEVEL,
                use_dictionary=list(dictionary),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # The file is lost already; what its closing has to say would hide why.
            with suppress(OSError, pa.ArrowException):
                self._writer.close()

    def write(self, group: pa.Table) -> None:
        """Append one row group."""
        with _writing(self._path):
            self._writer.write_table(group, row_group_size=max(1, group.num_rows))

    def note(self, name: str, value: str) -> None:
        """Add to the file's metadata."""
        self._writer.add_key_value_metadata({name: value})

    def close(self) -> None:
        """Finish the file."""
        with _writing(self._path):
            self._writer.close()
