"""Files as objects in S3: one put publishes a file, and a listing tells of a thousand at once.

Credentials are found the usual AWS way: environment, profile, or the role of the machine.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import tempfile
import time
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from botocore.exceptions import ClientError

from backfill_dagster.errors import StorageError
from backfill_dagster.stores.local import free_bytes
from backfill_dagster.stores.s3_errors import NOT_THERE, error_code, is_no_right, s3_errors
from backfill_dagster.stores.s3_lease import S3Lease, require_guards
from backfill_dagster.stores.s3_object import ObjectFile
from backfill_dagster.stores.store import StoredObject

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from backfill_dagster.stores.location import S3Folder

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 60
# Of each call; S3 asks for patience by 503 SlowDown, and pauses grow between tries.
_ATTEMPTS = 8
_CONNECTIONS = 16
# Of a lease, so that a renewal which hangs has failed, and was tried again, long before the lease runs out.
_LEASE_TIMEOUT, _LEASE_ATTEMPTS, _LEASE_CONNECTIONS = 6, 3, 64
# Objects that one call lists, at most.
_PAGE_SIZE = 1000
# A larger file is put in parts of this size, which S3 puts together in one step at the end.
_PART_BYTES = 32 * 2**20
# More than this S3 copies in parts: it takes 5 GB at once, and an answer must come before the time is up.
_COPIED_AT_ONCE = 256 * 2**20
# A writer publishes blocks and the pack that names them within minutes; after so long, it is dead.
_ABANDONED_SECONDS = 24 * 60 * 60
_LOCKS = ".locks"
_LOCK_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.2
_READ_BUFFER = 2**16
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# What is deleted at once, at most.
_DELETED_AT_ONCE = 1000
# What servers answer that keep no versions, or have no uploads in parts to tell of.
_UNKNOWN = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405", "NoSuchVersion"})


class S3Store:
    """Objects below a prefix of a bucket; see `Store`."""

    keeps_on_disk = False

    def __init__(self, root: S3Folder) -> None:
        self.root = root

    def where(self, key: str) -> str:
        """Return the object's address."""
        return str(self.root / key)

    @property
    def polars_options(self) -> dict[str, str]:
        """What Polars must be told besides the credentials, which it finds as boto3 does."""
        settings = _settings(self.root)
        options = {"aws_region": settings.region}
        if settings.endpoint_url:
            options["aws_endpoint_url"] = settings.endpoint_url
            # By any name that Polars does not know it stops looking for credentials as boto3 does.
            options["allow_http"] = str(settings.endpoint_url.startswith("http://")).lower()
        return options

    def find(self, key: str) -> StoredObject | None:
        """Return what is known of one object; None if it is not there."""
        with self._errors(key, "read"):
            try:
                head = self._client.head_object(Bucket=self.root.bucket, Key=self._name(key))
            except ClientError as error:
                if error_code(error) in NOT_THERE:
                    return None
                raise
        return StoredObject(key, head["ContentLength"], f"{head['ETag']} {head['LastModified']}")

    def files(self, prefix: str) -> list[StoredObject]:
        """Return all objects below a prefix, sorted by key."""
        return self._listed(prefix)

    def everything(self, leaving_out: Container[str]) -> list[StoredObject]:
        """Return all objects, sorted by key, but for those below these names."""
        named = ((file, file.key.partition("/")[0]) for file in self._listed())
        return [file for file, name in named if name != _LOCKS and name not in leaving_out]

    def _listed(self, prefix: str | None = None) -> list[StoredObject]:
        below = self.root if prefix is None else self.root / prefix
        with self._errors(prefix or "", "listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.root.bucket,
                Prefix=f"{below.prefix}/" if below.prefix else "",
                PaginationConfig={"PageSize": _PAGE_SIZE},
            )
            found = [
                StoredObject(
                    self._key(item["Key"]), item["Size"], f"{item['ETag']} {item['LastModified'].isoformat()}"
                )
                for page in pages
                for item in page.get("Contents", ())
                # What AWS's console makes to show a folder is no file.
                if not item["Key"].endswith("/")
            ]
        return sorted(found, key=lambda file: file.key)

    def folders(self, prefix: str) -> list[str]:
        """Return the sorted names of what stands right below a prefix and has objects below it."""
        below = self._name(prefix) + "/"
        with self._errors(prefix, "listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.root.bucket, Prefix=below, Delimiter="/"
            )
            return sorted(
                item["Prefix"].removeprefix(below).rstrip("/")
                for page in pages
                for item in page.get("CommonPrefixes", ())
            )

    def stamp(self, keys: Sequence[str], folders: Sequence[str]) -> list[tuple[str, str | None]]:
        """Return the versions of these objects, and of those below prefixes that match, by a listing of each."""
        alone = [(key, None if (found := self.find(key)) is None else found.version) for key in keys]
        below = [
            (file.key, file.version)
            for top in sorted({name.partition("/")[0] for name in folders})
            for file in self.files(top)
            if any(fnmatchcase(file.key.rpartition("/")[0], name) for name in folders)
        ]
        return [*alone, *below]

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading at any place, by ranges; raises FileNotFoundError."""
        with self._errors(key, "read"), self._finding(key):
            name = self._name(key)
            file = ObjectFile(self._client, self.root.bucket, name, lambda: self._errors(key, "read"))
        return cast("BinaryIO", io.BufferedReader(file, _READ_BUFFER))

    def local(self, key: str, scratch: Path) -> Path:
        """Return a copy of an object in a scratch folder; raises FileNotFoundError."""
        target = scratch / f"copy-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        with self._errors(key, "read"), self._finding(key):
            try:
                self._client.download_file(self.root.bucket, self._name(key), str(target))
            except OSError as error:
                # Of what comes from S3 none is an error of the system's.
                raise StorageError.unwritable(target, error) from error
        return target

    def put(self, local: Path, key: str) -> None:
        """Put a finished local file as one object: others see the old content or the new."""
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES)
        require_guards()
        with self._errors(key, "written"):
            self._client.upload_file(str(local), self.root.bucket, self._name(key), Config=parts)

    def duplicate(self, key: str, as_key: str, scratch: Path) -> None:  # noqa: ARG002  it stays in S3
        """Have S3 copy an object; the bytes do not come here."""
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=_COPIED_AT_ONCE, multipart_chunksize=_COPIED_AT_ONCE)
        source = {"Bucket": self.root.bucket, "Key": self._name(key)}
        require_guards()
        with self._errors(as_key, "written"), self._finding(key):
            self._client.copy(source, self.root.bucket, self._name(as_key), Config=parts)

    def remove(self, key: str) -> None:
        """Delete one object, if it is there."""
        require_guards()
        with self._errors(key, "removed"):
            self._client.delete_object(Bucket=self.root.bucket, Key=self._name(key))

    def forget_removed(self) -> None:
        """Delete the old versions of objects, if the bucket keeps some, and the parts of uploads that were broken off.

        Warns if it cannot be told whether there are any.
        """
        place = {"Bucket": self.root.bucket, "Prefix": f"{self.root.prefix}/" if self.root.prefix else ""}
        with (
            self._errors("", "rid of uploads that were broken off"),
            self._telling("ListBucketMultipartUploads"),
        ):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(**place):
                for upload in page.get("Uploads", ()):
                    # Not all servers heed the prefix.
                    if upload["Key"].startswith(place["Prefix"]):
                        self._client.abort_multipart_upload(
                            Bucket=self.root.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
        status = None
        with self._errors("", "asked for old versions"), self._telling("GetBucketVersioning"):
            status = self._client.get_bucket_versioning(Bucket=self.root.bucket).get("Status")
        if status is None:
            return
        with self._errors("", "rid of old versions (s3:ListBucketVersions, s3:DeleteObjectVersion)"):
            for page in self._client.get_paginator("list_object_versions").paginate(**place):
                kept = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                # A mark of deletion is the latest version of what it stands for, and tells a name.
                markers = {(one["Key"], one["VersionId"]) for one in page.get("DeleteMarkers", ())}
                old = [
                    {"Key": one["Key"], "VersionId": one["VersionId"]}
                    for one in kept
                    if not one["IsLatest"] or (one["Key"], one["VersionId"]) in markers
                ]
                for first in range(0, len(old), _DELETED_AT_ONCE):
                    some = {"Objects": old[first : first + _DELETED_AT_ONCE], "Quiet": True}
                    told = self._client.delete_objects(Bucket=self.root.bucket, Delete=some)
                    for error in told.get("Errors", ()):
                        raise ClientError({"Error": error}, "DeleteObjects")

    @contextmanager
    def _telling(self, right: str) -> Iterator[None]:
        """Pass over what a server does not know, and warn of what it does not allow."""
        try:
            yield
        except ClientError as error:
            if is_no_right(error):
                logger.warning(
                    "%s: whether the bucket still keeps what is removed cannot be told without the right s3:%s; it "
                    "must have no versioning, and a rule that ends incomplete uploads",
                    self.root,
                    right,
                )
            elif error_code(error) not in _UNKNOWN:
                raise

    def remove_empty_folders(self, prefix: str) -> None:
        """Do nothing: there are no folders in S3."""

    @property
    def scratch_parent(self) -> Path:
        """A folder of this machine's own, by the name of the place."""
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"backfill_dagster-{os.getuid()}" / digest

    def make_scratch_parent(self) -> Path:
        """Make that folder; raises StorageError if it belongs to another user, or could be changed by one."""
        folder = self.scratch_parent
        for made in (folder.parent, folder):
            try:
                with suppress(FileExistsError):
                    made.mkdir(mode=0o700)
                status = made.lstat()
            except OSError as error:
                raise StorageError.unwritable(made, error) from error
            # All users may make folders beside it, also one of this name.
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not is_ours or status.st_mode & _WRITABLE_BY_OTHERS:
                raise StorageError(
                    f"{made} is not a folder that this user alone can write to, so that others could change what is "
                    "made there; remove it, or set TMPDIR to a folder of your own"
                )
        return folder

    def free_bytes(self) -> int | None:
        """Return how much may be written to scratch; S3 itself is never full."""
        return free_bytes(self.make_scratch_parent())

    def shared(self, prefix: str) -> AbstractContextManager[None]:  # noqa: ARG002  nobody sweeps what is young
        """Do nothing: what is published together is young, and only what is old is swept."""
        return nullcontext()

    def sweeping(self, prefix: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Do nothing: see `settled`."""
        return nullcontext()

    @contextmanager
    def alone(self, prefix: str) -> Iterator[None]:
        """Hold a prefix alone, by a lease, while objects below it are read and written again."""
        with self.attempt(prefix, _LOCK_WAIT_SECONDS) as is_held:
            if not is_held:
                raise StorageError(
                    f"{self.where(prefix)} has been held by another run for {_LOCK_WAIT_SECONDS:.0f} s; wait until "
                    "that has ended, then run the same again: what is stored is whole"
                )
            yield

    @contextmanager
    def attempt(self, prefix: str, patience: float) -> Iterator[bool]:
        """Hold a prefix alone, if nobody else does so for longer than `patience` seconds; gives whether it is held."""
        lease = lease_at(self.root / f"{_LOCKS}/{prefix}.lease")
        deadline = time.monotonic() + patience
        with self._errors(prefix, "held"):
            while (held := lease.take("a run")) is None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        try:
            if held is not None:
                held.guard()
            yield held is not None
        finally:
            if held is not None:
                held.release()

    def settled(self, files: Iterable[StoredObject]) -> Iterator[StoredObject]:
        """Yield those that nobody has touched for a day: without a common clock of locks, age alone tells."""
        for file in files:
            written = datetime.fromisoformat(file.version.partition(" ")[2])
            if (datetime.now(UTC) - written).total_seconds() > _ABANDONED_SECONDS:
                yield file

    @property
    def _client(self) -> Any:
        return s3_client(self.root)

    def _name(self, key: str) -> str:
        return (self.root / key).prefix

    def _key(self, name: str) -> str:
        return name.removeprefix(f"{self.root.prefix}/") if self.root.prefix else name

    @contextmanager
    def _errors(self, key: str, what: str) -> Iterator[None]:
        """Say which object could not be read or changed, and what to do."""
        what = f"{self.where(key) if key else self.root} cannot be {what}"
        try:
            with s3_errors(what):
                yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"{what}: {error}") from error

    @contextmanager
    def _finding(self, key: str) -> Iterator[None]:
        """Raise FileNotFoundError for an object that is not there."""
        try:
            yield
        except ClientError as error:
            if error_code(error) in NOT_THERE:
                raise FileNotFoundError(self.where(key)) from error
            raise


class _Settings(NamedTuple):
    endpoint_url: str | None
    region: str


_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")


def _settings(root: S3Folder) -> _Settings:
    """Return what the study leaves open as the environment and AWS's configuration say it."""
    return _settings_for(root.endpoint_url, root.region, tuple(map(os.environ.get, _VARIABLES)))


@lru_cache(maxsize=8)
def _settings_for(
    endpoint_url: str | None, region: str | None, variables: tuple[str | None, ...]
) -> _Settings:
    import boto3

    s3_endpoint, any_endpoint, region_name, *_ = variables
    return _Settings(
        endpoint_url or s3_endpoint or any_endpoint,
        region or region_name or boto3.session.Session().region_name or "us-east-1",
    )


def s3_client(root: S3Folder) -> Any:
    """Return this process's client for the server that a place is on; raises StorageError."""
    return _client_of(root, for_leases=False)


def lease_at(place: S3Folder) -> S3Lease:
    """Return the lease whose object is at a place; raises StorageError."""
    return S3Lease(_client_of(place, for_leases=True), place.bucket, place.prefix)


def _client_of(place: S3Folder, *, for_leases: bool) -> Any:
    # A profile that is not there is said here.
    with s3_errors(f"{place} cannot be reached"):
        settings = _settings(place)
        return _client_for(settings.endpoint_url, settings.region, os.getpid(), for_leases=for_leases)


@lru_cache(maxsize=16)
def _client_for(
    endpoint_url: str | None,
    region: str,
    pid: int,  # noqa: ARG001  a fork makes its own
    *,
    for_leases: bool,
) -> Any:
    # It takes longer to import than all else here, and most studies are stored on a disk.
    import boto3
    from botocore.config import Config

    if for_leases:
        config = Config(
            connect_timeout=_LEASE_TIMEOUT,
            read_timeout=_LEASE_TIMEOUT,
            retries={"mode": "standard", "total_max_attempts": _LEASE_ATTEMPTS},
            max_pool_connections=_LEASE_CONNECTIONS,
        )
    else:
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=_READ_TIMEOUT,
            retries={"mode": "adaptive", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=_CONNECTIONS,
        )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
