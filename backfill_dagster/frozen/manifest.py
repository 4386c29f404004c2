"""The manifest of a frozen build: that of the build with paths below the frozen folder, and what was purged since.

`manifest.json` in the folder is its commit: what lies there without one is no frozen build. Beside it are the lists of
its files and of the snapshots, under names that it tells, since both are replaced together when something is purged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.errors import StorageError
from backfill_dagster.frozen.places import frozen_folder
from backfill_dagster.manifest.accounts import SNAPSHOTS_SCHEMA
from backfill_dagster.manifest.canonical import Told, read_told, write_told
from backfill_dagster.manifest.files import FILES_SCHEMA
from backfill_dagster.manifest.keys import (
    FILES_KEY,
    MANIFEST_FOLDER,
    MANIFEST_KEY,
    PROOF_FOLDER,
    SNAPSHOTS_KEY,
)
from backfill_dagster.repos.ledger_lots import account_ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backfill_dagster.storage import StudyStorage

_VERSION = 1
# What the build's manifest says of its own lists, and of files that are not frozen.
_OF_THE_BUILD_ALONE = frozenset({"files", "accounts", "totals", "not_covered"})
_LISTS = {"files": FILES_KEY, "accounts": SNAPSHOTS_KEY}


@dataclass(frozen=True, slots=True)
class FrozenBuild:
    """A frozen build as its manifest tells of it: its files (FILES_SCHEMA) by path below the frozen folder."""

    label: str
    told: Told
    files: pl.DataFrame

    @property
    def key(self) -> str:
        """Where the manifest lies."""
        return f"{frozen_folder(self.label)}/{MANIFEST_KEY}"

    @property
    def snapshots_key(self) -> str:
        """Where the list of its snapshots lies."""
        return f"{frozen_folder(self.label)}/{self.told.content['accounts']['file']}"

    @property
    def frozen_at(self) -> str:
        """When it was frozen, in ISO 8601."""
        return str(self.told.made["frozen_at"])

    @property
    def made_of(self) -> str:
        """The digest of the manifest of the build that was frozen."""
        return str(self.told.content["manifest_sha256"])

    @property
    def purges(self) -> list[dict[str, Any]]:
        """What was purged from it since, oldest first."""
        return list(self.told.content["purges"])

    @property
    def tables(self) -> list[str]:
        """The sorted names of its record tables and derived tables."""
        keys = [key.split("/") for key in self.files["key"]]
        return sorted({parts[1] for parts in keys if parts[0] in ("tables", "derived") and len(parts) > 2})

    @property
    def own_keys(self) -> set[str]:
        """The paths below the frozen folder of the manifest and its lists, of which they do not tell themselves."""
        return {MANIFEST_KEY, *(str(self.told.content[name]["file"]) for name in _LISTS)}


def content_of(build: Told, label: str) -> dict[str, Any]:
    """Return what the manifest of a frozen build says of the build that is frozen, by that one's manifest."""
    kept = {name: told for name, told in build.content.items() if name not in _OF_THE_BUILD_ALONE}
    return {
        "frozen_version": _VERSION,
        "label": label,
        **kept,
        "manifest_sha256": build.digest,
        "purges": [],
    }


def read_frozen(storage: StudyStorage, label: str) -> FrozenBuild:
    """Read what a frozen build says of itself; raises StorageError if it is not there, or not what was written."""
    told, files = read_whole(storage, f"{frozen_folder(label)}/")
    build = FrozenBuild(label, told, files)
    try:
        # All that is asked of one later must be in it.
        _ = (build.frozen_at, build.made_of, build.purges)
    except (KeyError, TypeError) as error:
        raise StorageError(f"{storage.where(build.key)} does not say {error!s:.100}") from error
    return build


def read_whole(storage: StudyStorage, folder: str = "") -> tuple[Told, pl.DataFrame]:
    """Return the manifest in a folder, the study's if none is named, with its list of files.

    Raises StorageError if it, or one of its lists, is not there, or not what was written.
    """
    told = read_told(storage, f"{folder}{MANIFEST_KEY}")
    try:
        for name in _LISTS:
            key = f"{folder}{told.content[name]['file']}"
            if storage.sha256(key) != told.content[name]["sha256"]:
                raise StorageError(f"{storage.where(key)} is not the list that the manifest was written with")
        key = f"{folder}{told.content['files']['file']}"
    except (KeyError, TypeError) as error:
        raise StorageError(f"{storage.where(folder + MANIFEST_KEY)} does not say {error!s:.100}") from error
    [files] = storage.collect([storage.scan([key], FILES_SCHEMA)], [key])
    # Whether it can be read, before anything is done by it.
    snapshots_key = f"{folder}{told.content['accounts']['file']}"
    every = storage.scan([snapshots_key], SNAPSHOTS_SCHEMA).select(pl.all().null_count())
    storage.collect([every], [snapshots_key], engine="streaming")
    return told, files


def snapshot_lots(storage: StudyStorage, key: str) -> Iterator[pl.DataFrame]:
    """Yield a manifest's list of snapshots (SNAPSHOTS_SCHEMA), sorted by DID, some of them at a time."""
    listed = storage.scan([key], SNAPSHOTS_SCHEMA)
    for dids in account_ranges(storage.rows(key)):
        yield from storage.collect([listed.filter(dids.holds("did"))], [key])


def frozen_builds(storage: StudyStorage, labels: list[str]) -> list[FrozenBuild]:
    """Return those of these builds that tell of themselves; `verify` says what is wrong with the others."""
    found = []
    for label in labels:
        try:
            found.append(read_frozen(storage, label))
        except StorageError:
            continue
    return found


def write_frozen(
    storage: StudyStorage,
    label: str,
    content: dict[str, Any],
    made: dict[str, Any],
    files: pl.DataFrame,
    snapshots: Iterable[pl.DataFrame],
) -> FrozenBuild:
    """Store the manifest of a frozen build, and last what commits it; what that does not name any more goes then.

    `snapshots` come some after the others, sorted by DID.
    """
    folder = f"{frozen_folder(label)}/"
    keys = {name: _list_key(name, len(content["purges"])) for name in _LISTS}
    lists = {
        "files": storage.write(folder + keys["files"], files),
        "accounts": storage.write_parts(folder + keys["accounts"], snapshots, SNAPSHOTS_SCHEMA),
    }
    described = {
        name: {
            "file": keys[name],
            "rows": stored.rows,
            "bytes": stored.bytes,
            "sha256": stored.sha256,
        }
        for name, stored in lists.items()
    }
    totals = {"files": files.height, "bytes": int(files["bytes"].sum())}
    told = Told({**content, "totals": totals, **described}, made)
    build = FrozenBuild(label, told, files)
    write_told(storage, build.key, told)
    remove_left_over(storage, build)
    return build


def remove_left_over(storage: StudyStorage, build: FrozenBuild) -> None:
    """Delete lists, and the certificate, if the manifest does not name them (any more)."""
    folder = f"{frozen_folder(build.label)}/"
    named = {*build.own_keys, *build.files["key"]}
    for part in (MANIFEST_FOLDER, PROOF_FOLDER):
        for key in storage.keys(f"{folder}{part}", "*"):
            if key.removeprefix(folder) not in named:
                storage.remove(key)


def _list_key(name: str, purges: int) -> str:
    key = _LISTS[name]
    # Of another name each time: the one that the stored manifest tells of stands until the new one is stored.
    return key if not purges else key.replace(".parquet", f"-{purges}.parquet")
