"""A small study of the sandbox, collected and built, and its copies; and what is done to its files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.storage import StudyStorage
from backfill_dagster.verification.frozen_builds import check_frozen
from backfill_dagster.verification.manifest_check import check_certificate, check_files, read_manifest
from backfill_dagster.verification.verdicts import Found
from backfill_dagster_tests.studies import sandbox, sandbox_study

SETTINGS = SandboxSettings(seed=23, accounts=30, hosts=1, records=4)
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop"}
TYPES = ["app.bsky.feed.post", "app.bsky.graph.follow"]


def collected_study(folder: Path, **parts: object) -> Study:
    """Collect a study of one host, one month and three tables, and build them."""
    network = sandbox(SETTINGS)
    network.faults.clear()
    study = sandbox_study(
        folder,
        "study",
        SETTINGS,
        **{
            "processing": {"requests_per_second": 500, "workers": 1},
            "time_range": PERIOD,
            "record_types": TYPES,
            "derived": {"engagement": True},
            "discovery": {},
            "filters": {
                "app.bsky.graph.follow": {"subjects": {"type": "inline", "dids": list(network.dids)}}
            },
            **parts,
        },
    )
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study)
    pipeline.convert_records(study)
    pipeline.build_tables(study)
    return study


def copy_of(study: Study, folder: Path) -> Study:
    """Return the same study on a copy of its data."""
    shutil.copytree(study.root.parent, folder / "data", symlinks=True)
    return study.model_copy(update={"storage": study.storage.model_copy(update={"path": folder / "data"})})


def wrong_files(study: Study) -> list[Found]:
    """Do the first steps of a verification: say what the files are not, without looking into them."""
    storage = StudyStorage(study.root)
    manifest, found = read_manifest(storage)
    found = [*check_certificate(storage), *found, *check_frozen(storage, 1)[1]]
    return found if manifest is None else [*found, *check_files(storage, manifest, 1)]


@contextmanager
def kept(path: Path) -> Iterator[bytes]:
    """Give what is in a file, and write it back at the end."""
    data = path.read_bytes()
    try:
        yield data
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def rows_of(study: Study, key: str) -> pl.DataFrame:
    """Read one of a study's files."""
    return pl.read_parquet(study.root / key, hive_partitioning=False)
