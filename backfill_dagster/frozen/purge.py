"""A purge in frozen builds: the rows of what was purged go, and the manifest says so.

Each step asks the tombstones and the files only, so that a purge that was interrupted is finished by doing all of it
again. A file that is written anew notes which one it takes the place of (`purged_from`): the digest of that one, hashed
with the salt of the tombstones, since by the digest itself a reader of the file who guesses whom the purge was about
could find that the guess is right. By it, what this purge or an interrupted one has changed is told from what was
changed by somebody else, of which the manifest keeps the old digest, so that a verification still finds it.

A file that cannot be read stops neither the purge of the others nor the study: it is told of, and looked at again.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from backfill_dagster.attrition.steps import ATTRITION_KEY
from backfill_dagster.derived.build import FOLDER as DERIVED_FOLDER
from backfill_dagster.derived.engaged import ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY
from backfill_dagster.errors import StorageError
from backfill_dagster.frozen.derived_again import MADE_AGAIN, derived_again, engaged_again
from backfill_dagster.frozen.freeze import sweep_unfinished
from backfill_dagster.frozen.manifest import (
    FrozenBuild,
    read_frozen,
    remove_left_over,
    snapshot_lots,
    write_frozen,
)
from backfill_dagster.frozen.places import frozen_folder, frozen_labels
from backfill_dagster.frozen.rows import (
    recounted_accounts,
    settled_firsts,
    without_lost_hosts,
    without_purged,
)
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, MANIFEST_FOLDER
from backfill_dagster.monitoring.code_version import code_version
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.records.tables import TABLES
from backfill_dagster.records.windows import UNDATED
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import ACCOUNTS_KEY
from backfill_dagster.tables.build import table_keys
from backfill_dagster.tables.kept import add_kept, count_kept
from backfill_dagster.workers import SMALL_BYTES, worker_pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from backfill_dagster.config.study import Study
    from backfill_dagster.stores.location import Location

# In the metadata of a file that was written anew: the mark of the one before.
_PURGED_FROM = "purged_from"
_NOTHING = "nothing"
# What every Parquet file says of itself, which is not to be handed on.
_NOT_HANDED_ON = frozenset({"ARROW:schema", "schema_version", _PURGED_FROM})
_RECORD_FOLDERS = ("tables/", f"{UNDATED}/")
_ENGAGED = (ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY)


@dataclass(frozen=True, slots=True)
class FrozenPurge:
    """How many rows of records went from frozen builds, and of each file that cannot be read, which and why."""

    rows: int
    unreadable: tuple[str, ...]


def purge_frozen(study: Study, tombstones: Tombstones) -> FrozenPurge:
    """Take what has a tombstone out of all frozen builds of a study, as far as their files can be read."""
    storage = StudyStorage(study.location)
    sweep_unfinished(storage)
    builds = [_Purging(study, label, tombstones) for label in frozen_labels(storage)]
    rows = sum(build.run() for build in builds)
    return FrozenPurge(rows, tuple(error for build in builds for error in build.unreadable))


class _Change(NamedTuple):
    """A file that was written anew, by its path below the frozen folder: its rows, bytes and digest now."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _FilePurge:
    """A file to purge: its path below the frozen folder, and the digest that its manifest tells of it."""

    label: str
    key: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _PurgedFile:
    """What a file came to: the rows that went, and what it is now if it is not what its manifest tells.

    Or why it cannot be read.
    """

    removed: int
    change: _Change | None
    unreadable: str | None = None


def purge_file(root: Location, file: _FilePurge) -> _PurgedFile:
    """Take what has a tombstone out of one file of a frozen build; the work of one worker process."""
    storage = StudyStorage(root)
    try:
        rows = storage.read(f"{frozen_folder(file.label)}/{file.key}")
    except StorageError as error:
        told = f"{error!s:.400}; what it holds of the purged cannot be removed: take it from a copy, or delete it"
        return _PurgedFile(0, None, told)
    tombstones = Tombstones.load(storage)
    stays = without_purged(rows, tombstones)
    if not stays.equals(rows):
        return _PurgedFile(rows.height - stays.height, _replace(storage, file, stays, tombstones.salt))
    return _PurgedFile(0, _as_interrupted(storage, file, rows.height, tombstones.salt))


@dataclass(slots=True)
class _Purging:
    """The purge of one frozen build."""

    study: Study
    label: str
    tombstones: Tombstones
    build: FrozenBuild | None = None
    changes: dict[str, _Change] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def run(self) -> int:
        try:
            self.build = read_frozen(self._storage, self.label)
        except StorageError:
            # A verification says so; what is in its files must go all the same.
            self.build = None
        else:
            remove_left_over(self._storage, self.build)
        removed = self._purge_files()
        if self.unreadable:
            # As if it had been interrupted here: the next one finds in the files what this one has changed.
            self.changes = {}
        elif self.changes or self.build is None:
            self._settle()
        self._tell()
        return removed

    @property
    def _storage(self) -> StudyStorage:
        return StudyStorage(self.study.location)

    @property
    def _inside(self) -> StudyStorage:
        """The frozen folder, to read in: whatever is written takes the way through the study's own."""
        return StudyStorage(self.study.location / frozen_folder(self.label))

    def _sizes(self) -> dict[str, int]:
        folder = f"{frozen_folder(self.label)}/"
        found = self._storage.sizes(frozen_folder(self.label))
        return {key.removeprefix(folder): size for key, size in found.items() if key.endswith(".parquet")}

    def _told(self) -> dict[str, str]:
        return {} if self.build is None else dict(self.build.files.select("key", "sha256").iter_rows())

    def _file(self, key: str) -> _FilePurge:
        return _FilePurge(self.label, key, self._told().get(key))

    def _purge_files(self) -> int:
        """Purge every table in the folder by itself, whether or not the manifest has it; return the records' rows."""
        sizes, told = self._sizes(), self._told()
        # The lists of a manifest that stands are written anew with it.
        left_out = () if self.build is None else (f"{MANIFEST_FOLDER}/",)
        keys = [key for key in sorted(sizes) if not key.startswith(left_out)]
        files = [_FilePurge(self.label, key, told.get(key)) for key in keys]
        removed = 0
        for file, done in self._each(files, sum(sizes.values())):
            removed += done.removed if file.key.startswith(_RECORD_FOLDERS) else 0
            self._note(done.change)
            self.unreadable += [] if done.unreadable is None else [done.unreadable]
        return removed

    def _each(self, files: list[_FilePurge], size: int) -> Iterable[tuple[_FilePurge, _PurgedFile]]:
        if size < SMALL_BYTES:
            yield from ((file, purge_file(self.study.location, file)) for file in files)
            return
        with worker_pool(self.study.processing.worker_count) as workers:
            asked = {workers.submit(purge_file, self.study.location, file): file for file in files}
            for future in as_completed(asked):
                yield asked[future], future.result()

    def _settle(self) -> None:
        """Bring into line what tells of other rows than its own."""
        inside, keys = self._inside, set(self._sizes())
        for table in TABLES:
            for key, rows in settled_firsts(inside, table, table_keys(inside, table), self.tombstones):
                self._write(key, rows)
        if ACCOUNTS_KEY in keys:
            self._settle_accounts(inside, has_attrition=ATTRITION_KEY in keys)
        if self.build is not None:
            self._settle_derived(inside, keys, self.build)

    def _settle_accounts(self, inside: StudyStorage, *, has_attrition: bool) -> None:
        accounts = inside.read(ACCOUNTS_KEY)
        partly = [did for did in accounts["did"] if self.tombstones.holds_records_of(did)]
        if partly:
            kept = add_kept([count_kept(inside, table) for table in TABLES])
            absent = pl.DataFrame({"did": partly}).join(kept, on="did", how="left")
            counts = pl.col(*(name for name, kind in kept.schema.items() if kind == pl.UInt32))
            self._write(ACCOUNTS_KEY, recounted_accounts(accounts, absent.with_columns(counts.fill_null(0))))
        if has_attrition:
            hosts = accounts["pds_host"].drop_nulls().unique().to_list()
            self._write(ATTRITION_KEY, without_lost_hosts(inside.read(ATTRITION_KEY), hosts))

    def _settle_derived(self, inside: StudyStorage, keys: set[str], build: FrozenBuild) -> None:
        rows = self._record_rows(keys, build)
        own = {key for key in keys if key.startswith(f"{DERIVED_FOLDER}/")}
        again = {key for key in own if key.split("/")[1] in MADE_AGAIN}
        names = sorted({key.split("/")[1] for key in again})
        made = set()
        for key, found in derived_again(inside, rows, names):
            self._write(key, found)
            made.add(key)
        for key in again - made:
            self._write(key, inside.read(key).clear())
        if keys.issuperset((*_ENGAGED, ACCOUNTS_KEY)):
            own_accounts = inside.read(ACCOUNTS_KEY).filter("in_source")["did"]
            for key, found in engaged_again(inside, build.told.content["config"], rows, own_accounts).items():
                self._write(key, found)

    def _record_rows(self, keys: set[str], build: FrozenBuild) -> dict[str, int]:
        """Return the rows of each file of the record tables, as the manifest and the changes tell them."""
        told = dict(build.files.select("key", "rows").iter_rows())
        now = {**told, **{key: change.rows for key, change in self.changes.items()}}
        return {key: now.get(key) or 0 for key in keys if key.startswith(_RECORD_FOLDERS)}

    def _write(self, key: str, rows: pl.DataFrame) -> None:
        """Store other rows under a path below the frozen folder, unless they are what is there."""
        storage, full = self._storage, f"{frozen_folder(self.label)}/{key}"
        # A thread whose first record is gone can begin in a window that had none.
        same = storage.read(full).equals(rows) if storage.exists(full) else rows.is_empty()
        if not same:
            self._note(_replace(storage, self._file(key), rows, self.tombstones.salt))

    def _note(self, change: _Change | None) -> None:
        if change is not None:
            self.changes[change.key] = change

    def _tell(self) -> None:
        """Write the manifest anew if anything that it tells of is another."""
        if self.build is None:
            return
        build, now = self.build, self.changes
        if not now and not self._are_purged_listed(build):
            return
        files = _listed(build.files, now)
        write_frozen(
            self._storage,
            self.label,
            {**build.told.content, "purges": [*build.purges, _purge_told(build, files, now)]},
            build.told.made,
            files,
            (rows for _, rows in self._snapshots(build)),
        )

    def _are_purged_listed(self, build: FrozenBuild) -> bool:
        return any(not stay.equals(rows) for rows, stay in self._snapshots(build))

    def _snapshots(self, build: FrozenBuild) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Yield the snapshots that are listed, some of them at a time, and what stays of these."""
        for rows in snapshot_lots(self._storage, build.snapshots_key):
            yield rows, without_purged(rows, self.tombstones)


def _listed(files: pl.DataFrame, changes: Mapping[str, _Change]) -> pl.DataFrame:
    """Return the list of files with those that were written anew, and without the certificate of those before."""
    new = pl.DataFrame(list(changes.values()), schema=files.schema, orient="row")
    kept = files.join(new, on="key", how="anti").filter(pl.col("key") != CERTIFICATE_KEY)
    return pl.concat([kept, new]).sort("key")


def _purge_told(build: FrozenBuild, files: pl.DataFrame, changes: Mapping[str, _Change]) -> dict[str, Any]:
    """Say when a purge was, and what it changed: in numbers, and in the digests that files have now.

    Not in those that they had: by them, one who guesses whom it was about could find that the guess is right.
    """
    before = dict(build.files.select("key", "rows").iter_rows())
    went = {key: (before.get(key) or 0) - change.rows for key, change in changes.items()}
    made_again = {key.split("/")[1] for key in changes if key.startswith(f"{DERIVED_FOLDER}/")}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "accounts": went.get(ACCOUNTS_KEY, 0),
        "rows": sum(rows for key, rows in went.items() if key.startswith(_RECORD_FOLDERS)),
        "files": [
            {"file": key, "rows_removed": went[key], "sha256": change.sha256}
            for key, change in sorted(changes.items())
        ],
        "files_removed": sorted(set(build.files["key"]) - set(files["key"])),
        "derived_again": {"tables": sorted(made_again), "by_version": code_version()},
        "manifest_sha256_before": build.told.digest,
    }


def _mark(file: _FilePurge, salt: bytes) -> str:
    """Return the note of a file that takes the place of the one that the manifest tells of."""
    return hashlib.sha256(salt + (file.sha256 or _NOTHING).encode()).hexdigest()


def _replace(storage: StudyStorage, file: _FilePurge, rows: pl.DataFrame, salt: bytes) -> _Change | None:
    """Write a file anew; returns what it is now if it was what its manifest tells, else None."""
    key, mark = f"{frozen_folder(file.label)}/{file.key}", _mark(file, salt)
    is_there = storage.exists(key)
    metadata = storage.metadata(key) if is_there else {}
    is_told = metadata.get(_PURGED_FROM) == mark or file.sha256 == (storage.sha256(key) if is_there else None)
    handed_on = {name: text for name, text in metadata.items() if name not in _NOT_HANDED_ON}
    note = {_PURGED_FROM: mark} if is_told else {}
    stored = storage.write(key, rows, {**handed_on, **note})
    return _Change(file.key, stored.rows, stored.bytes, stored.sha256) if is_told else None


def _as_interrupted(storage: StudyStorage, file: _FilePurge, rows: int, salt: bytes) -> _Change | None:
    """Return what a file is now if a purge wrote it anew that ended before the manifest told of it."""
    key = f"{frozen_folder(file.label)}/{file.key}"
    if storage.metadata(key).get(_PURGED_FROM) != _mark(file, salt):
        return None
    return _Change(file.key, rows, storage.size(key), storage.sha256(key))
