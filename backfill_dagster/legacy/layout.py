"""The previous system's folders: `<root>/raw_sync/create/<type>/{active,cache}/partition_date=YYYY-MM-DD/*.parquet`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster.closed_sets import ClosedSet
from backfill_dagster.errors import SourceError
from backfill_dagster.records.tables import BLOCK, FOLLOW, LIKE, POST, REPOST

if TYPE_CHECKING:
    from collections.abc import Iterator

COLLECTION_OF_TYPE = {
    "post": POST,
    "reply": POST,
    "like": LIKE,
    "repost": REPOST,
    "follow": FOLLOW,
    "block": BLOCK,
}
LAYERS = ("active", "cache")
_TREE = ("raw_sync", "create")
_PARTITION = re.compile(r"partition_date=(\d{4}-\d{2}-\d{2})")


class PassedOver(ClosedSet):
    """Why a file or folder of the tree is not read."""

    SYMBOLIC_LINK = (
        "symbolic_link",
        "It is a symbolic link, which may lead anywhere.",
        "Put the files themselves there.",
    )
    OTHER_OPERATION = "other_operation", "It stands beside `create`: records that were deleted, as a rule."
    UNKNOWN_TYPE = "unknown_type", "It is the folder of no type of records that is known here."
    UNKNOWN_LAYER = "unknown_layer", "It is neither `active` nor `cache`."
    NO_PARTITION = "no_partition", "It is not named `partition_date=YYYY-MM-DD`."
    NO_PARQUET = "no_parquet", "It is no file whose name ends in `.parquet`."
    UNREADABLE = "unreadable", "It cannot be read as Parquet.", "Restore it from a copy, and import again."


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """A file of the tree: its path, also below the root (`name`), and when it was written, and so after its records."""

    path: Path
    name: str
    kind: str
    layer: str
    day: str
    written_at: datetime


@dataclass(frozen=True, slots=True)
class Stranger:
    """Something in the tree that is not read, and why."""

    name: str
    reason: PassedOver


def find_files(root: Path) -> tuple[list[LegacyFile], list[Stranger]]:
    """Return the files of a tree and what else is there, by their paths; follows no link. Raises SourceError."""
    top = root.joinpath(*_TREE)
    if not top.is_dir():
        raise SourceError(
            f"parquet_root = {str(root)!r}: has no folder {'/'.join(_TREE)} (looked for {top.absolute()})"
        )
    try:
        return _walk(root)
    except OSError as error:
        raise SourceError(f"parquet_root = {str(root)!r}: cannot be read: {error}") from error


def _walk(root: Path) -> tuple[list[LegacyFile], list[Stranger]]:
    files: list[LegacyFile] = []
    strangers: list[Stranger] = []

    def folders(folder: Path, otherwise: PassedOver, pattern: str) -> Iterator[Path]:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_symlink():
                strangers.append(Stranger(_name(root, entry.path), PassedOver.SYMBOLIC_LINK))
            elif entry.is_dir() and re.fullmatch(pattern, entry.name):
                yield Path(entry.path)
            else:
                strangers.append(Stranger(_name(root, entry.path), otherwise))

    for operation in folders(root / _TREE[0], PassedOver.OTHER_OPERATION, re.escape(_TREE[1])):
        for kind in folders(operation, PassedOver.UNKNOWN_TYPE, "|".join(COLLECTION_OF_TYPE)):
            for layer in folders(kind, PassedOver.UNKNOWN_LAYER, "|".join(LAYERS)):
                for partition in folders(layer, PassedOver.NO_PARTITION, _PARTITION.pattern):
                    _read_partition(root, partition, (kind.name, layer.name), files, strangers)
    return files, sorted(strangers, key=lambda stranger: stranger.name)


def _read_partition(
    root: Path, folder: Path, of: tuple[str, str], files: list[LegacyFile], strangers: list[Stranger]
) -> None:
    day = folder.name.partition("=")[2]
    if not _is_date(day):
        strangers.append(Stranger(_name(root, folder), PassedOver.NO_PARTITION))
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = _name(root, entry.path)
        if entry.is_symlink():
            strangers.append(Stranger(name, PassedOver.SYMBOLIC_LINK))
        elif entry.is_file() and entry.name.endswith(".parquet"):
            written_at = datetime.fromtimestamp(entry.stat().st_mtime, UTC)
            files.append(LegacyFile(Path(entry.path), name, *of, day, written_at))
        else:
            strangers.append(Stranger(name, PassedOver.NO_PARQUET))


def _name(root: Path, path: str | Path) -> str:
    # A name that is no UTF-8 must not keep the report from being written.
    return Path(path).relative_to(root).as_posix().encode("utf-8", "replace").decode()


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
