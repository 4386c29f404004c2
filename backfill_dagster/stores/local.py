"""Files in a folder of a local disk, where a rename publishes and the operating system's locks keep order."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa

from backfill_dagster.errors import StorageError
from backfill_dagster.stores.store import StoredObject

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

SCRATCH = ".scratch"
# What is left free: Dagster's history, which as a rule is on the same disk, must be able to say that it is full.
HEADROOM_BYTES = 64 * 2**20
_POLL_SECONDS = 0.1
# What is said where a file cannot have a second name, or no further one.
_NO_LINKS = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class LocalStore:
    """Files below a folder; see `Store`."""

    polars_options: dict[str, str] | None = None
    keeps_on_disk = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Return where the file of this key lies."""
        return self.root.joinpath(*key.split("/"))

    def where(self, key: str) -> str:
        """Return the file's path."""
        return str(self.path(key))

    def find(self, key: str) -> StoredObject | None:
        """Return what is known of one file; None if it is not there."""
        path = self.path(key)
        return _stored(key, path.stat()) if path.is_file() else None

    def files(self, prefix: str) -> list[StoredObject]:
        """Return all files below a prefix, sorted by key."""
        found: list[StoredObject] = []
        waiting = [(prefix, self.path(prefix))]
        while waiting:
            name, folder = waiting.pop()
            # A folder that another process deletes meanwhile holds nothing.
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                for entry in entries:
                    key = f"{name}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((key, Path(entry.path)))
                    elif entry.is_file():
                        found.append(_stored(key, entry.stat()))
        return sorted(found, key=lambda file: file.key)

    def everything(self, leaving_out: Container[str]) -> list[StoredObject]:
        """Return all that lies there, sorted by key: files, links wherever they lead, and what is neither."""
        told = []
        for path in self._everything(leaving_out):
            with suppress(FileNotFoundError):  # gone meanwhile
                status = path.stat() if path.exists() else path.lstat()
                key = path.relative_to(self.root).as_posix()
                told.append(_stored(key, status))
        return sorted(told, key=lambda file: file.key)

    def _everything(self, leaving_out: Container[str]) -> Iterator[Path]:
        # One at a time: paths take more memory than what is told of them.
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path.name in leaving_out:
                continue
            if path.is_dir() and not path.is_symlink():
                yield from (inner for inner in path.rglob("*") if inner.is_symlink() or not inner.is_dir())
            else:
                yield path

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders right below a prefix."""
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if path.is_dir())

    def stamp(self, keys: Sequence[str], folders: Sequence[str]) -> list[tuple[str, str | None]]:
        """Return when these files, and the folders that match, were changed; a folder is when it gets a new file."""
        paths = [*map(self.path, keys), *(path for name in folders for path in sorted(self.root.glob(name)))]
        return [(str(path), _changed_at(path)) for path in paths]

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading; raises FileNotFoundError."""
        return self.path(key).open("rb")

    def local(self, key: str, scratch: Path) -> Path:  # noqa: ARG002  it is local
        """Return the file itself."""
        return self.path(key)

    def put(self, local: Path, key: str) -> None:
        """Move a finished file to its key in one step, once its content is on the disk."""
        target = self.path(key)
        with writing(target):
            _sync(local)
            target.parent.mkdir(parents=True, exist_ok=True)
            local.replace(target)

    def duplicate(self, key: str, as_key: str, scratch: Path) -> None:
        """Link a file to a second key; copy it where there are no links, as across file systems.

        `put` has another file take a key's place and never writes into one, so that a link is as good as a copy.
        """
        source, target = self.path(key), self.path(as_key)
        if not source.is_file():
            raise FileNotFoundError(source)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            twin = scratch / "twin"
            try:
                # A link to a symbolic link would go on leading to wherever that leads.
                twin.hardlink_to(source.resolve())
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                shutil.copyfile(source, twin)
                _sync(twin)
            twin.replace(target)
            # To rename one of two links to the same file to the other one does nothing.
            twin.unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Delete one file, if it is there."""
        path = self.path(key)
        with writing(path):
            path.unlink(missing_ok=True)

    def forget_removed(self) -> None:
        """Do nothing: a disk keeps nothing by itself."""

    def remove_empty_folders(self, prefix: str) -> None:
        """Delete the folders below a prefix that hold nothing; only while nobody writes below it."""
        inner = [path for path in self.path(prefix).rglob("*") if path.is_dir()]
        for path in sorted(inner, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it holds something
                path.rmdir()

    @property
    def scratch_parent(self) -> Path:
        """A folder on the same file system, since a file is published by a rename."""
        return self.root / SCRATCH

    def make_scratch_parent(self) -> Path:
        """Make that folder, if there is none."""
        parent = self.scratch_parent
        with writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
        return parent

    def free_bytes(self) -> int | None:
        """Return how much may be written before the disk counts as full; None if it does not say."""
        return free_bytes(self.root)

    @contextmanager
    def shared(self, prefix: str) -> Iterator[None]:
        """Hold a folder while files are published in it that belong together; others may do the same."""
        with locked(self._made(prefix), fcntl.LOCK_SH):
            yield

    @contextmanager
    def sweeping(self, prefix: str) -> Iterator[None]:
        """Hold a folder, if there is one, while nobody publishes in it."""
        folder = self.path(prefix)
        with locked(folder, fcntl.LOCK_EX) if folder.is_dir() else nullcontext():
            yield

    @contextmanager
    def alone(self, prefix: str) -> Iterator[None]:
        """Hold a folder, made if there is none, while files below it are read and written again."""
        with locked(self._made(prefix), fcntl.LOCK_EX):
            yield

    @contextmanager
    def attempt(self, prefix: str, patience: float) -> Iterator[bool]:
        """Hold a folder alone, if nobody else does so for longer than `patience` seconds; gives whether it is held."""
        folder, deadline = self._made(prefix), time.monotonic() + patience
        with ExitStack() as held:
            while True:
                with suppress(BlockingIOError):
                    held.enter_context(locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
                    break
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(_POLL_SECONDS)
            yield True

    def _made(self, prefix: str) -> Path:
        folder = self.path(prefix)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def settled(self, files: Iterable[StoredObject]) -> Iterator[StoredObject]:
        """Yield all: who holds the folder alone knows that nobody is about to make use of them."""
        yield from files


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def free_bytes(folder: Path) -> int | None:
    """Return how much may be written below a folder before its disk counts as full; None if that does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error}") from error
    # Some file systems that are no disks have no size.
    return max(0, usage.free - HEADROOM_BYTES) if usage.total else None


def _changed_at(path: Path) -> str | None:
    try:
        return str(path.stat().st_mtime_ns)
    except OSError:
        return None


def _stored(key: str, status: os.stat_result) -> StoredObject:
    return StoredObject(key, status.st_size, str(status.st_mtime_ns))


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Say which file or folder it was that could not be changed."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError.unwritable(path, error) from error


@contextmanager
def locked(folder: Path, how: int) -> Iterator[None]:
    """Hold the operating system's lock on a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
