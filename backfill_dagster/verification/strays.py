"""Files among the packs and the converted records that nothing reads: no pack names them, or theirs is gone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backfill_dagster.repos.packs import pack_keys
from backfill_dagster.storage import partition_folder
from backfill_dagster.verification.guard import CANNOT_BE_READ
from backfill_dagster.verification.verdicts import FileProblem, Found

if TYPE_CHECKING:
    from backfill_dagster.storage import StudyStorage

_OF_A_PACK = re.compile(r"records/(?P<host>[^/]+)/[^/]+/(?P<pack>[0-9a-f]{20})(-\d+)?\.parquet")


def stray_files(storage: StudyStorage) -> list[Found]:
    """Return the files of `repos/` that are no pack and that none names, and those of `records/` of no pack.

    What an unreadable pack may name is not among them.
    """
    packs = pack_keys(storage)
    explained: set[str] = set()
    unread: set[str] = set()
    for _, _, key in packs:
        explained.add(key)
        try:
            listed = storage.scan_as_it_is(key).select("blocks_files").collect()["blocks_files"]
            names = {file["name"] for files in listed.drop_nulls() for file in files}
        except CANNOT_BE_READ:
            unread.add(f"{key.removesuffix('.parquet')}.blocks-")
            continue
        explained.update(f"{key.rpartition('/')[0]}/{name}" for name in names)
    strays = [
        key for key in storage.keys("repos", "*") if not (key in explained or key.startswith(tuple(unread)))
    ]
    known = {(partition_folder(host), pack) for host, pack, _ in packs}
    for key in storage.keys("records", "*"):
        match = _OF_A_PACK.fullmatch(key)
        if match is None or (match["host"], match["pack"]) not in known:
            strays.append(key)
    return [Found(FileProblem.ADDED, key, "no pack explains it") for key in strays]
