"""Freezes the build that a study's folder holds, under the study's label; a build that is frozen stays as it is.

    frozen = freeze(study)

First a mark is set beside the folder, then the files get their second keys in it, and then its manifest is stored,
which makes it a frozen build. Whatever is found with a mark and without a manifest was interrupted, and is begun anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from backfill_dagster.attrition.build import FIGURE_KEY, METHODS_KEY
from backfill_dagster.attrition.steps import ATTRITION_KEY
from backfill_dagster.derived.build import FOLDER as DERIVED_FOLDER
from backfill_dagster.derived.engaged import ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY
from backfill_dagster.dictionary.written import DESCRIPTOR_KEY, READABLE_KEY
from backfill_dagster.errors import StorageError
from backfill_dagster.frozen.manifest import (
    FrozenBuild,
    content_of,
    frozen_builds,
    read_frozen,
    read_whole,
    snapshot_lots,
    write_frozen,
)
from backfill_dagster.frozen.places import (
    FROZEN_FOLDER,
    frozen_folder,
    frozen_labels,
    unfinished_key,
    unfinished_labels,
)
from backfill_dagster.manifest.canonical import read_told
from backfill_dagster.manifest.files import FILES_SCHEMA, list_files
from backfill_dagster.manifest.keys import CERTIFICATE_KEY, MANIFEST_KEY
from backfill_dagster.records.windows import UNDATED
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import ACCOUNTS_KEY

if TYPE_CHECKING:
    from backfill_dagster.config.study import Study
    from backfill_dagster.manifest.canonical import Told

# What a reader of the paper opens.
_FOLDERS = ("tables/", f"{UNDATED}/", f"{DERIVED_FOLDER}/")
_FILES = (
    *(ACCOUNTS_KEY, ENGAGED_ACCOUNTS_KEY, ENGAGED_POSTS_KEY, DESCRIPTOR_KEY, READABLE_KEY),
    *(ATTRITION_KEY, FIGURE_KEY, METHODS_KEY),
)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The build of the study's label, whether it was frozen just now, and whether the study is another by now."""

    build: FrozenBuild
    is_new: bool
    has_moved_on: bool


def freeze(study: Study) -> Frozen:
    """Freeze the build that is stored, under `study.snapshot`; one that is frozen under this label already stays.

    Raises StorageError if there is no manifest, if the files are not those that it tells of, or if what is frozen under
    the label has no manifest any more.
    """
    label = study.snapshot
    assert label is not None  # noqa: S101  who asks for it has looked
    storage = StudyStorage(study.location)
    with storage.alone(FROZEN_FOLDER):
        sweep_unfinished(storage)
        if storage.keys(frozen_folder(label), "*"):
            build = _stored(storage, label)
            return Frozen(build, is_new=False, has_moved_on=build.made_of != _digest_now(storage))
        return Frozen(_freeze(study, storage, label), is_new=True, has_moved_on=False)


def is_frozen(study: Study) -> bool:
    """Tell whether a build is frozen under the study's label."""
    label, storage = study.snapshot, StudyStorage(study.location)
    return label is not None and storage.exists(f"{frozen_folder(label)}/{MANIFEST_KEY}")


def list_frozen(study: Study) -> list[FrozenBuild]:
    """Return a study's frozen builds, the oldest first."""
    storage = StudyStorage(study.location)
    builds = frozen_builds(storage, frozen_labels(storage))
    return sorted(builds, key=lambda build: (build.frozen_at, build.label))


def sweep_unfinished(storage: StudyStorage) -> None:
    """Delete what an interrupted run left of builds that it was about to freeze."""
    for label in unfinished_labels(storage):
        folder = frozen_folder(label)
        # With a manifest it is a frozen build, and only the mark was left.
        if not storage.exists(f"{folder}/{MANIFEST_KEY}"):
            for key in storage.keys(folder, "*"):
                storage.remove(key)
            storage.remove_empty_folders(FROZEN_FOLDER)
        storage.remove(unfinished_key(label))


def _freeze(study: Study, storage: StudyStorage, label: str) -> FrozenBuild:
    try:
        told, listed = read_whole(storage)
    except StorageError as error:
        raise StorageError(
            f"nothing tells what is to be frozen: {error}; materialize `manifest`, then `frozen`"
        ) from error
    wanted = listed.filter(_is_read())
    _ensure_unchanged(study, storage, wanted)
    folder = frozen_folder(label)
    storage.write_bytes(unfinished_key(label), b"")
    files = pl.concat([wanted, *_certificate(storage, told)]).sort("key")
    storage.duplicate({key: f"{folder}/{key}" for key in files["key"]})
    # Nobody may have built anything meanwhile.
    _ensure_unchanged(study, storage, wanted)
    made = {**told.made, "frozen_at": datetime.now(UTC).isoformat(timespec="seconds")}
    snapshots = snapshot_lots(storage, told.content["accounts"]["file"])
    build = write_frozen(storage, label, content_of(told, label), made, files, snapshots)
    storage.remove(unfinished_key(label))
    return build


def _is_read() -> pl.Expr:
    in_folders = pl.any_horizontal(pl.col("key").str.starts_with(folder) for folder in _FOLDERS)
    return in_folders | pl.col("key").is_in(_FILES)


def _ensure_unchanged(study: Study, storage: StudyStorage, wanted: pl.DataFrame) -> None:
    now = list_files(storage, study.processing.worker_count).filter(_is_read())
    both = wanted.join(now, on="key", how="full", suffix="_now", coalesce=True)
    changed = both.filter(pl.col("sha256").ne_missing(pl.col("sha256_now")))["key"].sort()
    if len(changed):
        raise StorageError(
            f"{len(changed):,} files are not those of which the manifest tells, such as "
            f"{storage.where(changed[0])}; materialize `manifest`, then `frozen`"
        )


def _certificate(storage: StudyStorage, told: Told) -> list[pl.DataFrame]:
    """Return the row (FILES_SCHEMA) of the certificate, if there is one of this very build."""
    try:
        certificate = read_told(storage, CERTIFICATE_KEY)
    except StorageError:
        return []
    if certificate.content.get("manifest_sha256") != told.digest:
        return []
    row = (CERTIFICATE_KEY, None, storage.size(CERTIFICATE_KEY), storage.sha256(CERTIFICATE_KEY))
    return [pl.DataFrame([row], schema=FILES_SCHEMA, orient="row")]


def _stored(storage: StudyStorage, label: str) -> FrozenBuild:
    try:
        return read_frozen(storage, label)
    except StorageError as error:
        raise StorageError(
            f"what is frozen as {label!r} does not tell what it is: {error}; take its manifest from a copy, or delete "
            f"{storage.where(frozen_folder(label))}, and it is frozen anew"
        ) from error


def _digest_now(storage: StudyStorage) -> str | None:
    try:
        return read_told(storage, MANIFEST_KEY).digest
    except StorageError:
        return None
