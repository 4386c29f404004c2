"""Names of places: a folder on a local disk, or what stands for one in S3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

S3_SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class S3Folder:
    """All objects of a bucket whose keys begin with `prefix` and a slash; with no prefix, all of the bucket.

    `endpoint_url` and `region` are None where the environment, or AWS's own configuration, is to say.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None

    def __truediv__(self, name: str) -> S3Folder:
        """Return what lies below it under this name."""
        return replace(self, prefix=f"{self.prefix}/{name}" if self.prefix else name)

    def __str__(self) -> str:
        """Return its address, as AWS's tools write it."""
        return f"{S3_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


Location: TypeAlias = Path | S3Folder
