"""Entries in objects of S3, or of a store that speaks like it.

Credentials, region and endpoint come from the environment (`AWS_...`), as for all of AWS's tools. The objects are
downloaded one at a time into lent scratch, under a name of ours: what an object is called never becomes a path.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from backfill_dagster.config.sources import format_of
from backfill_dagster.dids.sources.files import Columns, Query, SourceFile, one_line, read_file
from backfill_dagster.dids.sources.tabular import TabularEntries
from backfill_dagster.errors import SourceError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from backfill_dagster.config.sources import S3Source
    from backfill_dagster.dids.entries import SourceAccess

_SCHEME = "s3://"
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 60
_ATTEMPTS = 4
_PAGE_SIZE = 1000
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
# What servers call these things; of a HEAD request, which has no body to name them in, only the status is known.
_NO_BUCKET = ("NoSuchBucket",)
_NO_OBJECT = ("NoSuchKey", "404", "NotFound")
_FORBIDDEN = ("AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch")


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    etag: str
    bytes: int


class S3Entries(TabularEntries):
    """A column of an object, or of all objects of a format below a prefix, in the order of their names."""

    def __init__(self, config: S3Source, field: str, column: str) -> None:
        super().__init__(field, config.column or column)
        self._address = config.path
        self._bucket, _, self._key = config.path.removeprefix(_SCHEME).partition("/")
        self._format = config.format
        self._query = Query(config.query, config.parameters)

    def read(self, columns: Columns, access: SourceAccess) -> Iterator[pl.DataFrame]:
        """Yield columns of the objects, one after the other."""
        client = self._client()
        if not self._is_prefix:
            yield from self._read_object(client, self._key, columns, access)
            return
        for listed in self._listed(client):
            yield from self._read_object(client, listed.key, columns, access)

    def describe(self) -> str:
        """Name the object or prefix."""
        return f"{self.field}.path = {self._address!r}"

    def stamp(self) -> str:
        """Return what is asked, and the objects' names, entity tags and sizes."""
        client = self._client()
        objects = self._listed(client) if self._is_prefix else [self._head(client)]
        return repr((self._columns.names, self._query, self._format, objects))

    def _client(self) -> Any:
        with self._errors(None):
            return _make_client()

    @property
    def _is_prefix(self) -> bool:
        return self._key.endswith("/")

    def _read_object(
        self, client: Any, key: str, columns: Columns, access: SourceAccess
    ) -> Iterator[pl.DataFrame]:
        kind = self._format or format_of(key)
        if kind is None:
            raise SourceError(f"{self.describe()}: tells no format; give {self.field}.format")
        address = f"{_SCHEME}{self._bucket}/{key}"
        with TemporaryDirectory(dir=access.scratch) as folder:
            local = Path(folder) / "object"
            with self._errors(client):
                client.download_file(self._bucket, key, str(local))
            file = SourceFile(local, self.field, f"{self.field}.path = {address!r}", address)
            yield from read_file(file, kind, columns, self._query)

    def _listed(self, client: Any) -> list[_Object]:
        """Return the objects below the prefix that are of the format."""
        with self._errors(client):
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key, PaginationConfig={"PageSize": _PAGE_SIZE}
            )
            found = [
                _Object(item["Key"], item["ETag"], item["Size"])
                for page in pages
                for item in page.get("Contents", ())
            ]
        formats = {kind for item in found if (kind := format_of(item.key))}
        if self._format is None and len(formats) > 1:
            raise SourceError(
                f"{self.describe()}: has objects of several formats; say by {self.field}.format which to read: "
                f"{', '.join(sorted(formats))}"
            )
        wanted = formats if self._format is None else {self._format}
        of_format = [item for item in found if format_of(item.key) in wanted]
        if not of_format:
            what = f"none of its {len(found):,} objects is" if found else "there is no object, and so none"
            raise SourceError(f"{self.describe()}: {what} of the format {self._format or 'of any list'}")
        return sorted(of_format, key=lambda item: item.key)

    def _head(self, client: Any) -> _Object:
        with self._errors(client):
            head = client.head_object(Bucket=self._bucket, Key=self._key)
        return _Object(self._key, head["ETag"], head["ContentLength"])

    @contextmanager
    def _errors(self, client: Any) -> Iterator[None]:
        """Raise SourceError for whatever asking S3 raises, or making a client for it (None)."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise SourceError(f"{self.describe()}: no credentials were found; {_CREDENTIALS}") from error
        except ClientError as error:
            raise SourceError(f"{self.describe()}: {self._why(client, error)}") from error
        except (BotoCoreError, Boto3Error, ValueError) as error:
            # The last is what an endpoint that is no URL raises.
            raise SourceError(f"{self.describe()}: cannot be read: {one_line(error)}") from error
        except OSError as error:
            raise StorageError.unwritable(Path(error.filename or "scratch"), error) from error

    def _why(self, client: Any, error: Any) -> str:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _NO_BUCKET or (code in _NO_OBJECT and not self._bucket_exists(client)):
            return f"there is no bucket {self._bucket!r}"
        if code in _NO_OBJECT:
            return "there is no such object"
        if code in _FORBIDDEN:
            return f"may not be read with these credentials ({one_line(error)}); {_CREDENTIALS}"
        return f"cannot be read: {one_line(error)}"

    def _bucket_exists(self, client: Any) -> bool:
        """Tell whether the bucket is there, as far as it may be known: without the right to ask, it counts as there."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            return str(error.response.get("Error", {}).get("Code", "")) not in (*_NO_BUCKET, *_NO_OBJECT)
        except BotoCoreError:
            return True
        return True


def _make_client() -> Any:
    # It takes longer to import than all else here, and few studies have a list in S3.
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    return boto3.session.Session().client("s3", config=settings)
