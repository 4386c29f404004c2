"""A study's files: Parquet (and a page to read), each written whole or not at all, on a local disk or in S3.

Every file is made in a local scratch folder and then published in one step, so that a reader sees the old content or
the new and a crash leaves at most scratch behind. Keys are relative paths with `/` between their parts; each part is
made here, and a name from the network passes `partition_folder` first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar
from urllib.parse import quote, unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.work_cost import WorkClock
from backfill_dagster.stores.local import HEADROOM_BYTES, LocalStore, locked, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from backfill_dagster.stores.location import Location
    from backfill_dagster.stores.store import Store, StoredObject

SCHEMA_VERSION = "1"
COMPRESSION_LEVEL = 1
_PARTITION = "pds="
# Lazy frames that are read at once: Polars has a thread wait for each, and warns of thousands.
_FRAMES_AT_ONCE = 256
# Files that are looked at at once, where each look takes a request.
_LOOKS_AT_ONCE = 16
# Files of one folder from which on a listing of it takes fewer requests than to ask for each.
_WORTH_A_LISTING = 4
_PATH = "_path"
# More than a full disk has left when a write to it has failed.
_PROBE_BYTES = 2**20
_MEGABYTE = 2**20

_Asked = TypeVar("_Asked")
_Found = TypeVar("_Found")


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


def store_at(root: Location) -> Store:
    """Return the files of a place."""
    if isinstance(root, Path):
        return LocalStore(root)
    # boto3 takes longer to import than all else here, and most studies are stored on a disk.
    from backfill_dagster.stores.s3 import S3Store

    return S3Store(root)


class StudyStorage:
    """The folder `<storage.path>/<name>/` of one study; its `clock` tells apart what is spent on writing to it."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.clock = WorkClock()
        self._store = store_at(root)

    def where(self, key: str) -> str:
        """Return the address of the file of this key; refuses a key that leaves the study's folder."""
        return self._store.where(self._checked(key))

    @property
    def folder(self) -> Path:
        """The folder with the files; raises StorageError if they are not on a disk of this machine."""
        if not isinstance(self.root, Path):
            raise StorageError(f"{self.root} is not on a disk of this machine")
        return self.root

    def path(self, key: str) -> Path:
        """Return where the file of this key lies on this machine; raises StorageError if it lies elsewhere."""
        return self.folder.joinpath(*self._checked(key).split("/"))

    def exists(self, key: str) -> bool:
        """Tell whether the file of this key is there."""
        return self._store.find(self._checked(key)) is not None

    def size(self, key: str) -> int:
        """Return the size of a stored file in bytes."""
        found = self._store.find(self._checked(key))
        if found is None:
            raise StorageError(f"{self.where(key)} is missing; materialize the asset that writes it")
        return found.bytes

    def version(self, key: str) -> str | None:
        """Return what is another whenever a file is written; None if it is not there."""
        found = self._store.find(self._checked(key))
        return None if found is None else found.version

    def stamp(self, keys: Iterable[str], folders: Iterable[str]) -> list[tuple[str, str | None]]:
        """Return what is another whenever one of these files is written, or a file is put into one of these folders.

        Folders are given as globs of one level each.
        """
        return self._store.stamp(list(map(self._checked, keys)), list(folders))

    def listed(self, prefix: str, pattern: str = "*.parquet") -> list[StoredObject]:
        """Return what is known of the files below a prefix whose names match a pattern, sorted by key."""
        return [
            file
            for file in self._store.files(self._checked(prefix))
            if fnmatchcase(file.key.rpartition("/")[2], pattern)
        ]

    def keys(self, prefix: str, pattern: str = "*.parquet") -> list[str]:
        """Return the sorted keys of the files below a prefix whose names match a pattern."""
        return [file.key for file in self.listed(prefix, pattern)]

    def everything(self, leaving_out: Container[str] = ()) -> list[StoredObject]:
        """Return what is known of all that lies there, sorted by key; names right below the folder can be left out."""
        return self._store.everything(leaving_out)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the size in bytes of every file below a prefix, by key: cheaper than to ask for one after another."""
        return {file.key: file.bytes for file in self._store.files(self._checked(prefix))}

    def sizes_of(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the size in bytes of those of these files that are there, by key."""
        asked = list(map(self._checked, keys))
        if not self.keeps_on_disk:
            return self._sizes_listed(asked)
        found = self._each(self._store.find, asked)
        return {key: file.bytes for key, file in zip(asked, found, strict=True) if file is not None}

    def _sizes_listed(self, keys: Iterable[str]) -> dict[str, int]:
        """Do so by listing folders of which several files are asked for: a call tells of a thousand."""
        by_folder: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            by_folder[key.rpartition("/")[0]].append(key)
        listed = [folder for folder, some in by_folder.items() if folder and len(some) >= _WORTH_A_LISTING]
        single = [key for folder, some in by_folder.items() if folder not in listed for key in some]
        files = [file for some in self._each(self._store.files, listed) for file in some]
        files += [file for file in self._each(self._store.find, single) if file is not None]
        wanted = {key for some in by_folder.values() for key in some}
        return {file.key: file.bytes for file in files if file.key in wanted}

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders right below a prefix."""
        return self._store.folders(self._checked(prefix))

    def read(self, key: str) -> pl.DataFrame:
        """Read one file whole."""
        source, options = self.where(key), self._store.polars_options
        try:
            return pl.read_parquet(source, glob=False, storage_options=options)
        except FileNotFoundError:
            raise StorageError(f"{source} is missing; materialize the asset that writes it") from None
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StorageError(f"{source} cannot be read: {error}") from error

    def scan(self, keys: Iterable[str], schema: Mapping[str, pl.DataType] | pl.Schema) -> pl.LazyFrame:
        """Return a lazy frame over files of one schema; columns that older files lack come as null."""
        return self._scan(list(map(self.where, keys)), schema)

    def scan_named(
        self, names: Mapping[str, str], schema: Mapping[str, pl.DataType] | pl.Schema, column: str
    ) -> pl.LazyFrame:
        """Return a lazy frame over files, given by key with a name for each, which its rows have in another column.

        One scan of many files takes far less time and memory than a scan of each.
        """
        sources = list(map(self.where, names))
        named = {_PATH: sources, column: list(names.values())}
        of_path = pl.LazyFrame(named, schema=dict.fromkeys(named, pl.String))
        return self._scan(sources, schema, _PATH).join(of_path, on=_PATH, maintain_order="left").drop(_PATH)

    def scan_as_it_is(self, key: str) -> pl.LazyFrame:
        """Return a lazy frame over one file in its own schema."""
        return pl.scan_parquet(self.where(key), glob=False, storage_options=self._store.polars_options)

    def _scan(
        self,
        sources: list[str],
        schema: Mapping[str, pl.DataType] | pl.Schema,
        path_column: str | None = None,
    ) -> pl.LazyFrame:
        """Scan files; a column for the address of each row's file is added if it has a name."""
        if not sources:
            return pl.LazyFrame(schema={**schema, **({path_column: pl.String()} if path_column else {})})
        return pl.scan_parquet(
            sources,
            glob=False,
            schema=pl.Schema(schema),
            missing_columns="insert",
            extra_columns="ignore",
            include_file_paths=path_column,
            storage_options=self._store.polars_options,
        )

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

    def schema(self, key: str) -> pl.Schema:
        """Return the schema of a stored table; raises StorageError for a file that is none."""
        with self._reading(key):
            return self.scan_as_it_is(key).collect_schema()

    def rows(self, key: str) -> int:
        """Return how many rows a stored table has; raises StorageError for a file that is none."""
        with self._reading(key), self._store.open(self._checked(key)) as file:
            return int(pq.read_metadata(file).num_rows)

    def read_bytes(self, key: str) -> bytes:
        """Return the content of a file; raises StorageError."""
        with self._reading(key), self._store.open(self._checked(key)) as file:
            return file.read()

    def metadata(self, key: str) -> dict[str, str]:
        """Return what a stored table says of itself beside its rows; raises StorageError for a file that is none."""
        with self._reading(key), self._store.open(self._checked(key)) as file:
            told = pq.read_metadata(file).metadata or {}
        return {name.decode(): value.decode() for name, value in told.items()}

    def metadata_of(self, keys: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return the metadata of those of these files that are there and are tables, by key."""

        def read(key: str) -> dict[str, str] | None:
            with suppress(StorageError):
                return self.metadata(key)
            return None

        asked = list(keys)
        told = self._each(read, asked)
        return {key: found for key, found in zip(asked, told, strict=True) if found is not None}

    def _each(self, look: Callable[[_Asked], _Found], keys: Sequence[_Asked]) -> list[_Found]:
        """Look at files; several at once, if each look takes a request."""
        if self.keeps_on_disk or len(keys) < 2:
            return list(map(look, keys))
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as threads:
            return list(threads.map(look, keys))

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        """Lend a stored file as one of this machine: itself, or a copy that is gone when the block ends."""
        if isinstance(self.root, Path):
            yield self.path(key)
            return
        with self.scratch() as folder:
            with self._reading(key):
                copy = self._store.local(self._checked(key), folder)
            yield copy

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of a stored file's bytes, in hex."""
        digest = hashlib.sha256()
        with self._reading(key), self._store.open(self._checked(key)) as file:
            while part := file.read(_MEGABYTE):
                digest.update(part)
        return digest.hexdigest()

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

    def write_parts(
        self,
        key: str,
        parts: Iterable[pl.DataFrame],
        schema: pl.Schema,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredFile:
        """Write the rows of all parts as one file, each part as a row group, so that no more than one is held."""
        with self.scratch() as folder:
            local, rows = folder / "parts.parquet", 0
            arrow_schema = arrow_table(schema.to_frame()).schema
            with RowGroupWriter(local, arrow_schema, dictionary=True, metadata=metadata) as file:
                for part in parts:
                    if part.height:
                        file.write(arrow_table(part.select(schema.names()).cast(schema)))
                        rows += part.height
            return self.publish(local, key, rows=rows)

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
            raise StorageError.unwritable(self.where(key), _cause_of(error, local)) from error
        return self.publish(local, key, rows=frame.height)

    def write_bytes(self, key: str, content: bytes) -> StoredFile:
        """Write one file that is no table, replacing what was there; it counts as having no rows."""
        with self.scratch() as folder:
            local = folder / "content"
            with writing(self.where(key)):
                local.write_bytes(content)
            return self.publish(local, key, rows=0)

    def publish(self, local: Path, key: str, *, rows: int) -> StoredFile:
        """Move a finished scratch file to its key in one step."""
        where = self.where(key)
        with self.clock.writing():
            with writing(where), local.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            self._store.put(local, key)
        return StoredFile(key=key, rows=rows, bytes=size, sha256=digest)

    def mirror(self, key: str, other: StudyStorage) -> None:
        """Make a file of this key, on this disk, that is another study's: a link to it, or a copy of one in S3.

        What is written here takes the link's place.
        """
        path = self.path(key)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(other.root, Path):
                path.symlink_to(other.path(key).absolute())
                return
        with other.local(key) as copy:
            self.publish(copy, key, rows=0)

    def stand_in(self, key: str, size: int) -> None:
        """Make a file of this key, on this disk, of which nothing but the size is right, and which takes no room."""
        with self.scratch() as folder:
            local = folder / "hollow"
            with writing(self.where(key)), local.open("wb") as file:
                file.truncate(size)
            self._store.put(local, key)

    def duplicate(self, keys: Mapping[str, str]) -> None:
        """Store files, by key, under second keys too: by links, or by copies that the place itself makes."""

        def duplicate(pair: tuple[str, str]) -> None:
            key, as_key = map(self._checked, pair)
            with self._reading(key):
                self._store.duplicate(key, as_key, folder)

        with self.scratch() as folder, self.clock.writing():
            self._each(duplicate, list(keys.items()))

    def remove(self, key: str) -> None:
        """Delete one file, if it is there."""
        self._store.remove(self._checked(key))

    def forget_removed(self) -> None:
        """Delete what the place keeps by itself of files that were removed, replaced, or never finished."""
        self._store.forget_removed()

    def remove_empty_folders(self, prefix: str) -> None:
        """Delete the folders below a prefix that hold nothing; only while nobody writes below it."""
        self._store.remove_empty_folders(self._checked(prefix))

    @property
    def keeps_on_disk(self) -> bool:
        """Whether what is stored lies on the disk on which it is made."""
        return self._store.keeps_on_disk

    @property
    def scratch_parent(self) -> Path:
        """The local folder in which files are made."""
        return self._store.scratch_parent

    def free_bytes(self) -> int | None:
        """Return how much may be written before the disk counts as full; None if it does not say."""
        return self._store.free_bytes()

    def ensure_headroom(self) -> None:
        """Raise StorageError if the disk counts as full."""
        if self.free_bytes() == 0:
            folder = self._store.scratch_parent.parent
            raise StorageError(
                f"{folder} cannot be written: fewer than {HEADROOM_BYTES // 2**20} MB are free on its disk; "
                "free some space, then run the same again: what is stored is whole"
            )

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Lend a local folder, gone when the block ends; on the file system of what is stored, if that is on a disk."""
        parent = self._store.make_scratch_parent()
        with writing(parent):
            self.ensure_headroom()
            with locked(parent, fcntl.LOCK_SH):
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
        if not self._store.scratch_parent.is_dir():
            return
        parent = self._store.make_scratch_parent()
        with writing(parent), locked(parent, fcntl.LOCK_EX):
            for folder in parent.iterdir():
                # Held by a living process, or just now deleted by one.
                with (
                    suppress(BlockingIOError, FileNotFoundError),
                    locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB),
                ):
                    shutil.rmtree(folder, ignore_errors=True)

    def shared(self, prefix: str) -> AbstractContextManager[None]:
        """Hold a folder while files are published in it that belong together; others may do the same."""
        return self._store.shared(self._checked(prefix))

    @contextmanager
    def sweeping(
        self, prefix: str, pattern: str, *, by_one_alone: bool = False
    ) -> Iterator[list[StoredObject]]:
        """Hold a folder while nobody publishes in it; gives its files of which nobody is about to make use.

        Those are all, if the caller is the only one at work on the study.
        """
        with self._store.sweeping(self._checked(prefix)):
            files = self.listed(prefix, pattern)
            yield files if by_one_alone else list(self._store.settled(files))

    def alone(self, prefix: str) -> AbstractContextManager[None]:
        """Hold a folder, made if there is none, while nobody else holds it or publishes in it."""
        return self._store.alone(self._checked(prefix))

    def attempt(self, prefix: str, patience: float) -> AbstractContextManager[bool]:
        """Hold a folder alone, if nobody else does so for longer than `patience` seconds; gives whether it is held."""
        return self._store.attempt(self._checked(prefix), patience)

    def _checked(self, key: str) -> str:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise StorageError(f"{key!r} is not a path below {self.root}")
        return key

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Say which file cannot be read."""
        try:
            yield
        except FileNotFoundError:
            raise StorageError(
                f"{self.where(key)} is missing; materialize the asset that writes it"
            ) from None
        except (OSError, pa.ArrowException, pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            raise StorageError(f"{self.where(key)} cannot be read: {error}") from error


def _cause_of(error: Exception, scratch: Path) -> Exception:
    """Return why a scratch file could not be written: Polars does not always hand on what the system said."""
    try:
        with scratch.open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as cause:
        return cause
    return error


def arrow_table(rows: pl.DataFrame) -> pa.Table:
    """Return rows as Arrow has them, in types that all readers of Parquet know."""
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def without_source(rows: pl.DataFrame) -> pl.DataFrame:
    """Return a copy of rows that holds them alone: a column of text keeps all the text that it was picked from."""
    return pl.DataFrame(pl.from_arrow(arrow_table(rows)), schema=rows.schema)


class RowGroupWriter:
    """Writes one Parquet file row group by row group, so that memory is bounded by the group, not the file.

    A context manager: the file is whole when the block ends, or when it is closed. Raises StorageError.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        dictionary: Sequence[str] | Literal[True],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Begin a file; `dictionary` names the columns whose values repeat, or leaves it to Arrow to find out."""
        self._path = path
        with writing(path):
            self._writer = pq.ParquetWriter(
                path,
                schema.with_metadata({"schema_version": SCHEMA_VERSION, **(metadata or {})}),
                compression="zstd",
                compression_level=COMPRESSION_LEVEL,
                use_dictionary=dictionary if dictionary is True else list(dictionary),
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
        with writing(self._path):
            self._writer.write_table(group, row_group_size=max(1, group.num_rows))

    def note(self, name: str, value: str) -> None:
        """Add to the file's metadata."""
        self._writer.add_key_value_metadata({name: value})

    def close(self) -> None:
        """Finish the file."""
        with writing(self._path):
            self._writer.close()
