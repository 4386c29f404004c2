"""What a study shares in the programs that crash tests kill, what is rebuilt from it, and what must hold of it."""

import os

import polars as pl

from backfill_dagster.config.sources import SharedSource
from backfill_dagster.config.study import Study
from backfill_dagster.sharing.rehydration import REHYDRATION_KEY, REHYDRATION_SCHEMA
from backfill_dagster.sharing.share import share
from backfill_dagster.sharing.shared_folder import SHARED_FOLDER, SHARED_MANIFEST, SharedIds
from backfill_dagster.storage import StudyStorage

SALT = "correct horse battery staple 0123456789"
_LABELS = ("ids", "pseudonyms")


def share_both(study: Study) -> None:
    """Share the ids, where an older version has left a file, and the tables under pseudonyms."""
    os.environ[study.sharing.salt_variable] = SALT
    StudyStorage(study.root).write(f"{SHARED_FOLDER}/ids/left_over.parquet", pl.DataFrame({"uri": []}))
    for label in _LABELS:
        share(study.model_copy(update={"sharing": study.sharing.model_copy(update={"what": label})}))


def rebuilt(study: Study) -> Study:
    """Return the study as one that is rebuilt from what it has shared itself."""
    path = study.root / SHARED_FOLDER / "ids"
    source = SharedSource(type="shared", path=path)
    return study.model_copy(update={"source": source, "filters": {}})


def leave_rehydration(study: Study, did: str) -> None:
    """Leave the table of a study that was rebuilt before, with a row of an account."""
    row = {
        "did": did,
        "table": "posts",
        "uri": f"at://{did}/app.bsky.feed.post/1",
        "outcome": "found",
        "kept": True,
    }
    StudyStorage(study.root).write(REHYDRATION_KEY, pl.DataFrame([row], schema=REHYDRATION_SCHEMA))


def check_whole(study: Study) -> None:
    """Check that what has a manifest is whole."""
    storage = StudyStorage(study.root)
    if storage.exists(f"{SHARED_FOLDER}/ids/{SHARED_MANIFEST}"):
        shared = SharedIds.open(study.root / SHARED_FOLDER / "ids")
        shared.check(["accounts", *shared.tables])


def shared_bytes(study: Study) -> dict[str, bytes]:
    """Return all that is shared."""
    folder = study.root / SHARED_FOLDER
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
