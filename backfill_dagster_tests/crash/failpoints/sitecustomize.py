"""Kills a run at a chosen step of its writing; Python imports a module of this name at the start of every process.

The product knows nothing of it. A run under test has this folder on its PYTHONPATH, so that it is active in every
worker that it starts; in the run's own process, which is forked off, `launcher` installs it. Each primitive that
changes the file system is wrapped; for a path below the storage's folder, the moments before and after it are
failpoints. Every failpoint that is passed is written to the log, and at the chosen one the whole process group, or
this process alone, is killed with SIGKILL.

A failpoint's name is `<role> <primitive> <place> < <callers>`: the role is `parent` or `worker`; the place is where in
the project the primitive is called, as `file:function:line`; for a place in the storage's modules, the callers are who
called that, up to the first that is no such module.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import pathlib  # noqa: F401  imported before the primitives are wrapped, like the next two
import shutil
import signal
import sys
import tempfile  # noqa: F401
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, ModuleType

PACKAGE = "backfill_dagster."
NOT_THE_PRODUCT = "backfill_dagster.sandbox"
STORAGE = "backfill_dagster.storage"
STORAGES = frozenset({STORAGE, "backfill_dagster.stores.local"})

_write_log = os.write
_readlink = os.readlink


class Failpoints:
    """The failpoints of this process, and the one at which it is killed."""

    def __init__(self, root: str, log: str, kill_at: str | None, *, alone: bool) -> None:
        self._root = root
        self._alone = alone
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._kill_at = kill_at
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def concerns(self, path: Any, directory: int | None = None) -> bool:
        """Say whether a path, or the file of a descriptor, is the storage's folder or below it."""
        try:
            if isinstance(path, int):
                whole = _readlink(f"/proc/self/fd/{path}")
            elif directory is not None:
                whole = f"{_readlink(f'/proc/self/fd/{directory}')}{os.sep}{os.fspath(path)}"
            else:
                whole = os.path.abspath(os.fspath(path))  # noqa: PTH100  pathlib looks at the file system
        except (OSError, TypeError):
            return False
        return whole == self._root or str(whole).startswith(self._root + os.sep)

    @contextlib.contextmanager
    def around(self, primitive: str) -> Iterator[None]:
        """Pass the failpoint before and the one after a primitive, also if it raises."""
        place = f"{_role()} {primitive} {_place()}"
        self._pass(f"{place} before")
        try:
            yield
        finally:
            self._pass(f"{place} after")

    def _pass(self, failpoint: str) -> None:
        with self._lock:
            self._passed[failpoint] += 1
            name = f"{failpoint} {self._passed[failpoint]}"
        _write_log(self._log, f"{name}\n".encode())
        if name == self._kill_at:
            if self._alone:
                os.kill(os.getpid(), signal.SIGKILL)
            os.killpg(0, signal.SIGKILL)
            signal.pause()


def _role() -> str:
    processes = sys.modules.get("multiprocessing.process")
    return "worker" if processes and processes.parent_process() is not None else "parent"


def _place() -> str:
    names = []
    frame = _product_frame(sys._getframe(1))
    while frame is not None:
        names.append(_name(frame))
        if frame.f_globals.get("__name__") not in STORAGES:
            break
        frame = _product_frame(frame.f_back)
    else:
        names.append("outside")
    return " < ".join(names)


def _product_frame(frame: FrameType | None) -> FrameType | None:
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(PACKAGE) and not module.startswith(NOT_THE_PRODUCT):
            return frame
        frame = frame.f_back
    return None


def _name(frame: FrameType) -> str:
    file = str(frame.f_globals["__name__"]).removeprefix(PACKAGE).replace(".", "/")
    return f"{file}.py:{frame.f_code.co_name}:{frame.f_lineno}"


def _wrap(points: Failpoints, owner: Any, name: str, *, target: int = 0) -> None:
    """Put failpoints around a function whose argument number `target` is a path or a descriptor."""
    inner: Callable[..., Any] = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if not points.concerns(arguments[target], named.get("dir_fd")):
            return inner(*arguments, **named)
        with points.around(name):
            return inner(*arguments, **named)

    setattr(owner, name, wrapped)


def _wrap_os_open(points: Failpoints) -> None:
    """Put failpoints around the opening of descriptors that may create a file."""
    inner = os.open

    def opened(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if not flags & os.O_CREAT or not points.concerns(path, named.get("dir_fd")):
            return inner(path, flags, *arguments, **named)
        with points.around("os.open"):
            return inner(path, flags, *arguments, **named)

    os.open = opened


def _wrap_open(points: Failpoints) -> None:
    """Put failpoints around the opening, writing and closing of files that are opened for writing."""
    inner = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not set(mode) & set("wax+") or not points.concerns(file):
            return inner(file, mode, *arguments, **named)
        with points.around("open"):
            handle: Any = inner(file, mode, *arguments, **named)
        _wrap_handle(points, handle)
        return handle

    io.open = opened
    builtins.open = opened


def _wrap_handle(points: Failpoints, handle: Any) -> None:
    write, close = handle.write, handle.close

    def wrapped_write(content: Any) -> Any:
        with points.around("file.write"):
            return write(content)

    def wrapped_close() -> None:
        if handle.closed:
            close()
            return
        with points.around("file.close"):
            close()

    handle.write, handle.close = wrapped_write, wrapped_close


def _wrap_parquet(points: Failpoints, storage: ModuleType) -> None:
    """Put failpoints around the Parquet writers, which write to files without Python's primitives."""
    _wrap(points, storage.pl.DataFrame, "write_parquet", target=1)
    writer = storage.pq.ParquetWriter
    create = writer.__init__

    def wrapped_create(self: Any, where: Any, *arguments: Any, **named: Any) -> None:
        if not points.concerns(where):
            create(self, where, *arguments, **named)
            return
        with points.around("ParquetWriter"):
            create(self, where, *arguments, **named)
        for name in ("write_table", "close"):
            _wrap_method(points, self, name)

    writer.__init__ = wrapped_create


def _wrap_method(points: Failpoints, owner: Any, name: str) -> None:
    inner = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        with points.around(f"ParquetWriter.{name}"):
            return inner(*arguments, **named)

    setattr(owner, name, wrapped)


class _AfterStorage(importlib.abc.MetaPathFinder):
    """Wraps the Parquet writers when the storage module has imported them, and not earlier.

    A worker sets Polars' environment up before it imports anything that imports Polars.
    """

    def __init__(self, points: Failpoints) -> None:
        self._points = points

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != STORAGE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_wrap(module: ModuleType) -> None:
                execute(module)
                _wrap_parquet(self._points, module)

            spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def install(points: Failpoints) -> None:
    """Wrap every primitive with which the project changes the file system."""
    _wrap_os_open(points)
    _wrap_open(points)
    for name in (
        *("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "ftruncate", "pwrite", "write"),
    ):
        _wrap(points, os, name)
    # The path that is made is the second one.
    _wrap(points, os, "link", target=1)
    _wrap(points, shutil, "rmtree")
    if STORAGE in sys.modules:
        _wrap_parquet(points, sys.modules[STORAGE])
    else:
        sys.meta_path.insert(0, _AfterStorage(points))


def install_from_environment() -> None:
    """Install what this process's environment asks for."""
    install(
        Failpoints(
            os.environ["FAILPOINTS_ROOT"],
            os.environ["FAILPOINTS_LOG"],
            os.environ.get("FAILPOINTS_KILL_AT"),
            alone="FAILPOINTS_ALONE" in os.environ,
        )
    )


if "FAILPOINTS_ROOT" in os.environ:
    install_from_environment()
