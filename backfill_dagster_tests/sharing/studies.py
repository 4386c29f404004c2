"""A study that is collected and shared from a sandbox, and others that are rebuilt from what it has shared."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl

from backfill_dagster import pipeline
from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.config.study import Study
from backfill_dagster.repos.snapshots import FetchMode
from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.studies import sandbox_study

SETTINGS = SandboxSettings(seed=41, accounts=30, hosts=1, records=9)
POST, LIKE, FOLLOW, PROFILE = (
    "app.bsky.feed.post",
    "app.bsky.feed.like",
    "app.bsky.graph.follow",
    "app.bsky.actor.profile",
)
GATE = "app.bsky.feed.threadgate"
TYPES = [POST, LIKE, FOLLOW, PROFILE]
TABLES = ["posts", "replies", "likes", "follows", "profiles", "other_records"]
# One month, so that building them is not most of the time.
PERIOD = {"start_date": "2024-10-01", "end_date": "2024-10-31", "outside": "drop"}
# What tells of the collection rather than of the record.
OF_THE_COLLECTION = ("repo_rev", "pds", "obtained", "first_for_subject")


def study_of(network: SandboxNetwork, folder: Path, name: str = "study", **parts: Any) -> Study:
    """Return a study of all accounts of a sandbox that is not this process's own."""
    folder.mkdir(exist_ok=True)
    return sandbox_study(
        folder,
        name,
        SETTINGS,
        **{
            "source": {"type": "inline", "dids": network.dids},
            "record_types": TYPES,
            "other_record_types": [GATE],
            "time_range": PERIOD,
            "processing": {"requests_per_second": 1000, "workers": 1, "max_retries": 0},
            "network": {
                "sandbox": None,
                "plc_url": network.plc_url,
                "connect_to": network.connect_to,
                "allow_private_addresses": True,
                "directory_max_age_hours": 0,
            },
            **parts,
        },
    )


def collect(study: Study, mode: FetchMode = FetchMode.UNSETTLED) -> pl.DataFrame:
    """Do all stages."""
    pipeline.collect_source(study)
    pipeline.resolve_accounts(study)
    pipeline.fetch_repos(study, mode=mode)
    pipeline.convert_records(study)
    return pipeline.build_tables(study)


def read_tables(study: Study) -> dict[str, pl.DataFrame]:
    """Return all rows of each table."""
    return {
        table: pl.concat(
            pl.read_parquet(path, hive_partitioning=False)
            for place in (f"tables/{table}/*/*.parquet", f"undated/{table}/*.parquet")
            for path in study.root.glob(place)
        ).sort("uri")
        for table in TABLES
    }


def of_the_records(tables: dict[str, pl.DataFrame], without: Collection[str] = ()) -> dict[str, Any]:
    """Return what tables say of their records, but for some by their URI or their account."""
    gone = pl.col("uri").is_in(list(without)) | pl.col("did").is_in(list(without))
    return {
        table: rows.filter(~gone).drop(OF_THE_COLLECTION, strict=False).to_dicts()
        for table, rows in tables.items()
    }
