"""Each frozen build of a study against its own manifest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from backfill_dagster.errors import StorageError
from backfill_dagster.frozen.manifest import FrozenBuild, read_frozen, snapshot_lots
from backfill_dagster.frozen.places import FROZEN_FOLDER, frozen_folder, unfinished_key, unfinished_labels
from backfill_dagster.manifest.keys import MANIFEST_KEY
from backfill_dagster.purge.tombstones import Tombstones
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backfill_dagster.storage import StudyStorage

_LOOKS_AT_ONCE = 1_000


def check_frozen(storage: StudyStorage, threads: int) -> tuple[dict[str, dict[str, Any]], list[Found]]:
    """Return what the certificate says of each frozen build by label, and what is wrong with any of them.

    Every file is read. A build whose manifest is not what was written is told of by that alone.
    """
    tombstones = Tombstones.load(storage)
    sizes = storage.sizes(FROZEN_FOLDER)
    marks = [unfinished_key(label) for label in unfinished_labels(storage)]
    by_label: dict[str, dict[str, int]] = {}
    found: list[Found] = []
    for key, size in sizes.items():
        _, label, *inside = key.split("/")
        if inside:
            by_label.setdefault(label, {})["/".join(inside)] = size
        elif key in marks:
            found.append(_wrong(key, "a build was begun to be frozen, and this was not finished"))
        else:
            found.append(_wrong(key, "it belongs to no frozen build"))
    told = {}
    for label, files in sorted(by_label.items()):
        try:
            build = read_frozen(storage, label)
        except StorageError as error:
            found.append(_wrong(f"{frozen_folder(label)}/{MANIFEST_KEY}", f"{error!s:.200}"))
            continue
        found += _check_files(storage, build, files, threads)
        if build.told.content.get("label") != label:
            said = f"its manifest is of what was frozen as {build.told.content.get('label')!r:.80}"
            found.append(_wrong(f"{frozen_folder(label)}/{MANIFEST_KEY}", said))
        lots = snapshot_lots(storage, build.snapshots_key)
        if tombstones.dids and any(tombstones.held_among(rows["did"]) for rows in lots):
            found.append(_wrong(frozen_folder(label), "it holds accounts that the study has purged"))
        told[label] = {
            "manifest_sha256": build.told.digest,
            "frozen_at": build.frozen_at,
            "files": build.files.height,
            "purges": len(build.purges),
        }
    return told, found


def _check_files(
    storage: StudyStorage, build: FrozenBuild, stored: Mapping[str, int], threads: int
) -> list[Found]:
    folder = frozen_folder(build.label)
    told = {key: (size, sha256) for key, _, size, sha256 in build.files.iter_rows()}
    found = [_wrong(f"{folder}/{key}", "it is missing") for key in told.keys() - stored.keys()]
    added = stored.keys() - told.keys() - build.own_keys
    found += [_wrong(f"{folder}/{key}", "its manifest does not have it") for key in added]
    both = sorted(told.keys() & stored.keys())
    digests = _digests(storage, [f"{folder}/{key}" for key in both], threads)
    for key, sha256 in zip(both, digests, strict=True):
        if (stored[key], sha256) != told[key]:
            size = f"{stored[key]:,} bytes, {told[key][0]:,} in its manifest"
            found.append(_wrong(f"{folder}/{key}", f"it has other bytes than it was frozen with: {size}"))
    return found


def _digests(storage: StudyStorage, keys: Sequence[str], threads: int) -> list[str | None]:
    def digest(key: str) -> str | None:
        try:
            return storage.sha256(key)
        except StorageError:
            return None

    found: list[str | None] = []
    with ThreadPoolExecutor(threads) as pool:
        # Some at a time: whatever waits for a thread takes more memory than its name.
        for first in range(0, len(keys), _LOOKS_AT_ONCE):
            found += pool.map(digest, keys[first : first + _LOOKS_AT_ONCE])
    return found


def _wrong(key: str, detail: str) -> Found:
    return Found(FileProblem.FROZEN_DIFFERS, key, detail)
