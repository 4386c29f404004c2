"""How fast and how thoroughly the work is done, and where the files go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from backfill_dagster.config.section import Section


class Processing(Section):
    """How fast and how thoroughly."""

    batch_size: int = Field(
        100, ge=1, le=1000, description="Accounts per pack, the unit of commit of a fetch."
    )
    pack_megabytes: int = Field(64, ge=1, le=1024, description="Repository bytes per pack.")
    max_concurrent_pds: int = Field(32, ge=1, le=1000, description="Hosts worked at once.")
    requests_in_flight: int = Field(4, ge=1, le=50, description="Requests under way at once per host.")
    requests_per_second: float = Field(9, gt=0, le=1000, description="Requests per second per host.")
    max_retries: int = Field(3, ge=0, le=20, description="Tries after the first, for failures only.")
    max_run_minutes: float | None = Field(
        None,
        gt=0,
        description="Begin nothing more after so long; the next run goes on. No limit if left out.",
    )
    verify: Literal["full", "structure"] = Field(
        "full", description="`structure` leaves out the commit's signature and nothing else."
    )
    workers: int | None = Field(None, ge=1, le=256, description="Worker processes; one per core if left out.")
    skip_backfill: bool = Field(False, description="Fetch nothing: rebuild the tables from what is stored.")
    record_json: bool = Field(True, description="Keep each record's JSON beside its columns.")

    @property
    def worker_count(self) -> int:
        """How many worker processes there are."""
        return self.workers or os.cpu_count() or 1


class Storage(Section):
    """Where the files go."""

    type: Literal["parquet"] = Field("parquet", description="The one format there is.")
    path: Path = Field(Path("./data"), description="A local folder, which holds a folder for each study.")

    @field_validator("type", mode="before")
    @classmethod
    def _known_type(cls, value: object) -> object:
        if value == "dynamodb":
            raise ValueError(
                "records cannot be stored in DynamoDB: an item holds at most 400 kB, less than a record may "
                "have, and tables are read by scanning columns; use `type: parquet`"
            )
        return value

    @field_validator("path", mode="before")
    @classmethod
    def _local_path(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError("must be a local directory")
        return value
