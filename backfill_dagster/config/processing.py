"""How fast and how thoroughly the work is done, and where the files go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from backfill_dagster.config.section import Section, http_origin
from backfill_dagster.stores.location import S3_SCHEME, Location, S3Folder


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

    type: Literal["parquet", "s3"] = Field("parquet", description="`parquet` on a local disk, or in `s3`.")
    path: Path | str = Field(
        Path("./data"),
        description="The folder that holds a folder per study; with `type: s3`, `s3://bucket/prefix`.",
    )
    endpoint_url: Annotated[str, AfterValidator(http_origin)] | None = Field(
        None, description="Of `s3`: the server, if it is not AWS's own or AWS_ENDPOINT_URL's."
    )
    region: str | None = Field(
        None, description="Of `s3`: the region, if AWS's configuration does not say it."
    )

    @field_validator("type", mode="before")
    @classmethod
    def _known_type(cls, value: object) -> object:
        if value == "dynamodb":
            raise ValueError(
                "records cannot be stored in DynamoDB: an item holds at most 400 kB, less than a record may "
                "have, and tables are read by scanning columns; use `type: parquet`"
            )
        return value

    @field_validator("path")
    @classmethod
    def _path_or_address(cls, value: Path | str, info: ValidationInfo) -> Path | str:
        text, in_s3 = str(value), info.data.get("type") == "s3"
        if not in_s3:
            if "://" in text:
                raise ValueError("must be a local directory; s3://bucket/prefix goes with type: s3")
            return Path(value)
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*/?", text):
            raise ValueError("must be s3://bucket/prefix")
        return text.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Storage:
        for name in ("endpoint_url", "region"):
            if getattr(self, name) is not None and self.type != "s3":
                raise ValueError(f"{name} is for type: s3 alone")
        return self

    @property
    def location(self) -> Location:
        """The place that holds a folder per study."""
        if isinstance(self.path, Path):
            return self.path
        bucket, _, prefix = self.path.removeprefix(S3_SCHEME).partition("/")
        return S3Folder(bucket, prefix, self.endpoint_url, self.region)
