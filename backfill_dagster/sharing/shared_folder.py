"""A shared folder: the tables and, published last, a manifest that names each with its rows and digest.

    <study>/shared/<label>/
      manifest.json       what is shared, of what, and every other file with its rows, size and SHA-256
      rebuilt.yaml        of ids: the YAML of a study that finds them again
      accounts.parquet    the accounts
      <table>.parquet     one for each table

A folder without a manifest, or with a file that is not the one that its manifest names, is not whole. It comes from
somebody else, as a rule: what this program would not have written is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import BaseModel, NonNegativeInt, ValidationError

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.config.sources import Nsid
from backfill_dagster.errors import StorageError
from backfill_dagster.manifest.canonical import read_told
from backfill_dagster.records.syntax import MAX_AT_URI_BYTES
from backfill_dagster.records.tables import OTHER_RECORDS, TABLE_BY_NAME, TABLES
from backfill_dagster.storage import StudyStorage
from backfill_dagster.stores.location import S3_SCHEME, S3Folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill_dagster.stores.location import Location

SHARED_FOLDER = "shared"
SHARED_MANIFEST = "manifest.json"
REBUILT_YAML = "rebuilt.yaml"
ACCOUNTS = "accounts"
# Raised whenever a reader of an older version would misread what is shared.
FORMAT = 1
IDS, PSEUDONYMS = "ids", "pseudonyms"
# One of 500 record types has 50 kB.
_MAX_MANIFEST_BYTES = 4 * 2**20
# Ids take some 40 bytes a row, compressed. A file of many rows and few bytes says the same again and again, so that it
# would fill the memory.
_ROWS_IN_FEW_BYTES = 1_000_000
# As records of a repository have them: of DAG-CBOR, with a SHA-256.
_RECORD_CID = r"^bafyrei[a-z2-7]{52}$"

SHARED_ACCOUNT_COLUMNS = (
    Column("did", pl.String(), "The account's DID.", required=True),
    Column("repo_rev", pl.String(), "Revision (TID) of its repository as it was collected."),
    Column("commit_cid", pl.String(), "CID of the signed commit of that revision."),
)
SHARED_RECORD_COLUMNS = (
    Column("uri", pl.String(), "The record's AT-URI.", required=True),
    Column("cid", pl.String(), "The CID that it had: an edited record has another.", required=True),
)
SHARED_ACCOUNTS_SCHEMA = schema_of(SHARED_ACCOUNT_COLUMNS)
SHARED_RECORDS_SCHEMA = schema_of(SHARED_RECORD_COLUMNS)


def table_file(table: str) -> str:
    """Return the name of a table's file in a shared folder."""
    return f"{table}.parquet"


def collection_of(column: str) -> pl.Expr:
    """Return the collections in a column of AT-URIs."""
    return pl.col(column).str.splitn("/", 5).struct.field("field_3")


def shared_place(path: str | Path) -> Location:
    """Return the place that a path, or an address of S3, names."""
    if isinstance(path, Path):
        return path
    bucket, _, prefix = path.removeprefix(S3_SCHEME).partition("/")
    return S3Folder(bucket, prefix.rstrip("/"))


class _ToldFile(BaseModel):
    """A file in a manifest."""

    rows: NonNegativeInt
    sha256: str


class _ToldIds(BaseModel):
    """What a reader needs of a manifest of ids."""

    files: dict[str, _ToldFile]
    record_types: list[Nsid]
    other_record_types: list[Nsid]


@dataclass(frozen=True, slots=True)
class SharedIds:
    """The ids in a shared folder, as its manifest tells of them."""

    storage: StudyStorage
    content: dict[str, Any]
    digest: str

    @classmethod
    def open(cls, place: Location) -> SharedIds:
        """Read a folder's manifest; raises StorageError if there is none of ids that this version can read."""
        storage = StudyStorage(place)
        where = storage.where(SHARED_MANIFEST)
        if not storage.exists(SHARED_MANIFEST):
            raise StorageError(
                f"{where} is missing: the folder is no shared one, or what was to write it did not get to its end"
            )
        if storage.size(SHARED_MANIFEST) > _MAX_MANIFEST_BYTES:
            raise StorageError(f"{where} is too large to be a manifest")
        told = read_told(storage, SHARED_MANIFEST)
        if not isinstance(told.content, dict):
            raise StorageError(f"{where} is not in the form of a manifest")
        if told.content.get("format") != FORMAT:
            raise StorageError(f"{where} is of another version of this program: it can be read by that one")
        if told.content.get("what") != IDS:
            raise StorageError(f"{where} tells of pseudonyms, from which nobody can find the records again")
        try:
            said = _ToldIds.model_validate(told.content)
        except ValidationError:
            # What it says there is not repeated: it may be anything.
            raise StorageError(f"{where} is not in the form of a manifest") from None
        if not said.files.keys() <= {
            REBUILT_YAML,
            *map(table_file, (ACCOUNTS, *TABLES)),
        }:
            raise StorageError(f"{where} tells of files that no such folder has")
        shared = cls(storage, told.content, told.digest)
        for table in shared.tables:
            collection = TABLE_BY_NAME[table].collection
            if not (said.other_record_types if collection is None else collection in said.record_types):
                raise StorageError(f"{where} tells of {table}, and not of the type of its records")
        return shared

    @property
    def tables(self) -> list[str]:
        """The names of the tables that are shared."""
        return [table for table in TABLES if table_file(table) in self.content["files"]]

    @property
    def collections(self) -> set[str]:
        """The collections whose records are."""
        told = [*self.content.get("record_types", ()), *self.content.get("other_record_types", ())]
        return set(map(str, told))

    def check(self, tables: Iterable[str]) -> None:
        """Raise StorageError unless the files of these tables are those that the manifest names."""
        for table in tables:
            key = table_file(table)
            told = self.content["files"].get(key)
            if told is None or not self.storage.exists(key):
                raise StorageError(f"{self.storage.where(key)} is missing: the shared folder is not whole")
            if self.storage.sha256(key) != told.get("sha256"):
                raise StorageError(
                    f"{self.storage.where(key)} is not the file that {SHARED_MANIFEST} names: it was changed, or not "
                    "copied whole"
                )
            rows = self.storage.rows(key)
            if rows != told.get("rows"):
                raise StorageError(
                    f"{self.storage.where(key)} has {rows:,} rows, and the manifest tells of {told.get('rows'):,}"
                )
            if rows > _ROWS_IN_FEW_BYTES + self.storage.size(key):
                raise StorageError(
                    f"{self.storage.where(key)} has {rows:,} rows in so few bytes: it is no list of ids"
                )

    def check_records(self, table: str, rows: pl.DataFrame) -> None:
        """Raise StorageError unless rows of a table can be shared records, each with the CID that it had.

        Without one, whatever stands under the URI by now would be taken for what was shared.
        """
        where = self.storage.where(table_file(table))
        is_short = pl.col("uri").str.len_bytes() <= MAX_AT_URI_BYTES
        is_record = is_short & pl.col("cid").str.contains(_RECORD_CID)
        if others := rows.height - rows.select(is_record.sum()).item():
            raise StorageError(f"{where} has {others:,} rows that are no record's URI and CID")
        if table == OTHER_RECORDS:
            is_told = collection_of("uri").is_in(self.content["other_record_types"])
            if others := rows.height - rows.select(is_told.sum()).item():
                raise StorageError(
                    f"{where} has {others:,} records of types that {SHARED_MANIFEST} does not name"
                )

    def scan(self, table: str) -> pl.LazyFrame:
        """Return the rows of a table, lazily."""
        schema = SHARED_ACCOUNTS_SCHEMA if table == ACCOUNTS else SHARED_RECORDS_SCHEMA
        return self.storage.scan([table_file(table)], schema)
