"""The folder of studies' YAML files: which there are, and how one that came over the network gets into it."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from backfill_dagster.api.errors import ConfigsUnwritableError, ConflictError, InvalidRequestError
from backfill_dagster.api.untrusted import Reach, check_study, check_text
from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import NAME_PATTERN
from backfill_dagster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster.config.study import Study

_SUFFIX = ".yaml"
_INCOMING = ".incoming-"
_LEFT_SECONDS = 3600
# Of a complaint, which has a line for each thing that is wrong.
_MAX_COMPLAINT = 4_000
# What making values of a YAML, or of its texts, can raise besides a complaint.
_UNUSABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)


class ConfigStore:
    """The configs folder. No name leads out of it, and nothing that is in it is ever replaced."""

    def __init__(self, folder: Path, reach: Reach) -> None:
        self._folder = folder
        self._reach = reach

    def names(self) -> list[str]:
        """Return the names of the YAML files that can be a study's, sorted."""
        with self._accessing():
            return sorted(
                path.stem for path in self._folder.glob(f"*{_SUFFIX}") if NAME_PATTERN.fullmatch(path.stem)
            )

    def load(self, name: str) -> Study:
        """Read and validate a stored YAML; raises ConfigError."""
        return _load(self._path(name))

    def check(self, text: str) -> Study:
        """Validate a YAML that came over the network, and store nothing; raises InvalidRequestError."""
        check_text(text, self._reach)
        name = _name_in(text)
        with self._accessing(), tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}{_SUFFIX}"
            path.write_bytes(_encoded(text))
            try:
                study = _load(path)
            except ConfigError as error:
                raise InvalidRequestError(str(error).replace(str(path), path.name)[:_MAX_COMPLAINT]) from None
        check_study(study, self._reach)
        return study

    def add(self, name: str, text: str) -> bool:
        """Store a YAML that was checked, whole or not at all; tell whether it is new, or stood there word for word.

        Raises ConflictError if another one of this name is there, in whatever spelling of upper and lower case.
        """
        target = self._path(name)
        with self._accessing():
            for path in self._folder.iterdir():
                if path.stem.lower() == name and path.suffix.lower() in (_SUFFIX, ".yml"):
                    if path == target and not path.is_symlink() and path.read_bytes() == _encoded(text):
                        return False
                    raise ConflictError(
                        f"there is a config {path.name} already; choose another name, or edit that file on the server"
                    )
            self._publish(target, _encoded(text), name)
        return True

    def remove(self, name: str) -> None:
        """Take away a YAML that was added a moment ago and turned out to be of no use."""
        with self._accessing():
            self._path(name).unlink(missing_ok=True)

    def _publish(self, target: Path, content: bytes, name: str) -> None:
        # Beside the target, so that it is on the same file system; its name is none that Dagster would load.
        self._sweep()
        descriptor, scratch = tempfile.mkstemp(dir=self._folder, prefix=_INCOMING)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(scratch).chmod(0o644)
            # Unlike a rename, a link takes the place of nothing, not even of a link that leads nowhere.
            os.link(scratch, target)
        except FileExistsError:
            raise ConflictError(f"there is a config {name}{_SUFFIX} already; choose another name") from None
        finally:
            with suppress(OSError):
                Path(scratch).unlink()

    def _sweep(self) -> None:
        """Delete what a process that was killed left behind long ago."""
        for path in self._folder.glob(f"{_INCOMING}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                    path.unlink()

    def _path(self, name: str) -> Path:
        if not NAME_PATTERN.fullmatch(name):
            raise InvalidRequestError(
                "config: must begin with a letter and hold only a-z, 0-9 and _, at most 41 of them"
            )
        return self._folder / f"{name}{_SUFFIX}"

    @contextmanager
    def _accessing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # By the system's words alone: where the folder lies is nobody's business.
            raise ConfigsUnwritableError(
                f"the configs folder cannot be used: {error.strerror or type(error).__name__}"
            ) from error


def _load(path: Path) -> Study:
    """Read and validate a YAML; whatever keeps it from being a study is a ConfigError."""
    try:
        return load_study(path)
    except _UNUSABLE as error:
        raise ConfigError(
            f"{path}: holds a value that nothing can be made of ({type(error).__name__})"
        ) from error


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("yaml: holds half a character (a lone surrogate)") from None


def _name_in(text: str) -> str:
    """Return the name that a YAML gives its study; raises InvalidRequestError for one that could be no study's."""
    try:
        document: Any = yaml.safe_load(text)
    except (yaml.YAMLError, *_UNUSABLE) as error:
        raise InvalidRequestError(f"yaml: is not valid YAML: {' '.join(str(error).split())}") from None
    body = document.get("backfill") if isinstance(document, dict) else None
    if not isinstance(body, dict):
        raise InvalidRequestError("yaml: must hold one mapping named `backfill`")
    name = body.get("name")
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise InvalidRequestError(
            "backfill.name: must begin with a letter and hold only a-z, 0-9 and _, at most 41 of them"
        )
    return name
