"""A study of a few rows as a run leaves it, without a run: tables, accounts, and the manifest that tells of them."""

import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from backfill_dagster.attrition.steps import ATTRITION_KEY, ATTRITION_SCHEMA
from backfill_dagster.config.study import Study
from backfill_dagster.frozen.places import frozen_folder
from backfill_dagster.manifest.accounts import SNAPSHOTS_SCHEMA
from backfill_dagster.manifest.canonical import Told, write_told
from backfill_dagster.manifest.files import list_files
from backfill_dagster.manifest.keys import FILES_KEY, MANIFEST_KEY, SNAPSHOTS_KEY
from backfill_dagster.manifest.told_config import told_config
from backfill_dagster.records.tables import TABLE_BY_NAME
from backfill_dagster.storage import StudyStorage
from backfill_dagster.study_files import ACCOUNTS_KEY
from backfill_dagster.tables.accounts import ACCOUNTS_SCHEMA
from backfill_dagster_tests.dids.sources.s3_server import BUCKET

ALICE, BOB, CAROL, DAVE = (f"did:plc:{letter * 24}" for letter in "abcd")
OCTOBER = datetime(2024, 10, 5, tzinfo=UTC)
POSTS = "tables/posts/month=2024-10/part-00000.parquet"
LIKES = "tables/likes/month=2024-10/part-00000.parquet"
UNDATED_POSTS = "undated/posts/part-00000.parquet"


def study_on(place: str, folder: Path, snapshot: str | None = "v1") -> Study:
    """Return a study of its own on a `disk`, in this folder, or in `s3`."""
    on_disk = {"path": str(folder / "data")}
    in_s3 = {"type": "s3", "path": f"s3://{BUCKET}/{uuid.uuid4().hex}"}
    body: dict[str, Any] = {
        "name": "study",
        "source": {"type": "inline", "dids": [ALICE, BOB, CAROL]},
        "storage": on_disk if place == "disk" else in_s3,
        "snapshot": snapshot,
    }
    return Study.model_validate(body)


def row(table: str, did: str, rkey: str, **values: Any) -> dict[str, Any]:
    """Return a row of a table, all of which it needs."""
    collection = TABLE_BY_NAME[table].collection
    return {
        "did": did,
        "collection": collection,
        "rkey": rkey,
        "uri": f"at://{did}/{collection}/{rkey}",
        "record_type": TABLE_BY_NAME[table].record_type,
        "created_at": OCTOBER,
        "date_quality": "ok",
        "issues": [],
        **values,
    }


def write_rows(storage: StudyStorage, key: str, rows: list[dict[str, Any]]) -> None:
    """Write a file of a table."""
    schema = TABLE_BY_NAME[key.split("/")[1]].schema
    storage.write(key, pl.DataFrame(rows, schema=schema))


def leave_build(study: Study, text: str = "first", run_id: str = "a run") -> Told:
    """Leave a build in a study's folder, with its manifest, which is returned."""
    storage = StudyStorage(study.location)
    write_rows(storage, POSTS, [row("posts", did, "1", text=text) for did in (ALICE, BOB, CAROL)])
    write_rows(storage, UNDATED_POSTS, [row("posts", BOB, "2", date_quality="missing", created_at=None)])
    likes = [
        row("likes", did, rkey, subject_uri=f"at://{ALICE}/app.bsky.feed.post/1", first_for_subject=first)
        for did, rkey, first in ((BOB, "1", True), (BOB, "2", False), (CAROL, "1", True))
    ]
    write_rows(storage, LIKES, likes)
    storage.write(ACCOUNTS_KEY, accounts())
    storage.write(ATTRITION_KEY, ATTRITION_SCHEMA.to_frame())
    storage.write_bytes("methods.md", b"Nobody is named.\n")
    storage.write_bytes("report.html", b"<html></html>")
    return leave_manifest(study, run_id)


def accounts() -> pl.DataFrame:
    """Return the table of accounts of this build."""
    kept = {ALICE: (1, 0, 0), BOB: (2, 2, 1), CAROL: (1, 1, 0)}
    rows = [
        {
            "did": did,
            "state": "complete",
            "in_source": True,
            "shown": True,
            "pds_host": f"{did[-1]}.test",
            "records_fetched": posts + likes + 1,
            "records_absent": 0,
            "records_kept": posts + likes,
            "records_filtered": 1,
            "records_rejected": 0,
            "filtered": [{"reason": "record_type", "records": 1}],
            "posts": posts,
            "likes": likes,
            "undated": undated,
            "with_issues": 0,
            "first_created_at": OCTOBER,
            "last_created_at": OCTOBER,
        }
        for did, (posts, likes, undated) in kept.items()
    ]
    return pl.DataFrame(rows, schema=ACCOUNTS_SCHEMA)


def leave_manifest(study: Study, run_id: str = "a run") -> Told:
    """Write the manifest of what is in a study's folder."""
    storage = StudyStorage(study.location)
    files = list_files(storage, 1)
    snapshots = [
        {"did": did, "pds_host": "a.test", "pack": "p", "obtained": "repo", "records": 2}
        for did in (ALICE, BOB, CAROL)
    ]
    lists = {
        "files": storage.write(FILES_KEY, files),
        "accounts": storage.write(SNAPSHOTS_KEY, pl.DataFrame(snapshots, schema=SNAPSHOTS_SCHEMA)),
    }
    described = {
        name: {"file": stored.key, "rows": stored.rows, "bytes": stored.bytes, "sha256": stored.sha256}
        for name, stored in lists.items()
    }
    config = told_config(study)
    content = {"study": study.name, "config": config, "stages": {}, "totals": {}, "not_covered": {}}
    told = Told({**content, **described}, {"at": "2024-12-01T00:00:00+00:00", "dagster_runs": [run_id]})
    write_told(storage, MANIFEST_KEY, told)
    return told


def copy_of(study: Study, folder: Path) -> Study:
    """Return the same study on a copy of its files, all of which lie on a disk."""
    shutil.copytree(study.storage.path, folder / "data")
    return study.model_copy(update={"storage": study.storage.model_copy(update={"path": folder / "data"})})


def frozen_bytes(study: Study, label: str) -> dict[str, str]:
    """Return the digest of each file of a frozen build, by its path below the frozen folder."""
    storage, folder = StudyStorage(study.location), frozen_folder(label)
    return {key.removeprefix(f"{folder}/"): storage.sha256(key) for key in storage.keys(folder, "*")}


def frozen_rows(study: Study, key: str, label: str = "v1") -> pl.DataFrame:
    """Read a table of a frozen build."""
    return StudyStorage(study.location).read(f"{frozen_folder(label)}/{key}")
