"""A shared folder: the tables and, published last, a manifest that names each with its rows and digest.

    <study>/shared/<label>/
      manifest.json       what is shared, of what, and every other file with its rows, size and SHA-256
      rebuilt.yaml        of ids: the YAML of a study that finds them again
      accounts.parquet    the accounts
      <table>.parquet     one for each table

A folder without a manifest, or with a file that is not the one that its manifest names, is not whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from backfill_dagster.columns import Column, schema_of
from backfill_dagster.errors import StorageError
from backfill_dagster.manifest.canonical import read_told
from backfill_dagster.records.tables import TABLES
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


def shared_place(path: str | Path) -> Location:
    """Return the place that a path, or an address of S3, names."""
    if isinstance(path, Path):
        return path
    bucket, _, prefix = path.removeprefix(S3_SCHEME).partition("/")
    return S3Folder(bucket, prefix.rstrip("/"))


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
        told = read_told(storage, SHARED_MANIFEST)
        if told.content.get("format") != FORMAT:
            raise StorageError(f"{where} is of another version of this program: it can be read by that one")
        if told.content.get("what") != IDS:
            raise StorageError(f"{where} tells of pseudonyms, from which nobody can find the records again")
        files = told.content.get("files")
        if not isinstance(files, dict) or not files.keys() <= {
            REBUILT_YAML,
            *map(table_file, (ACCOUNTS, *TABLES)),
        }:
            raise StorageError(f"{where} tells of files that no such folder has")
        return cls(storage, told.content, told.digest)

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

    def scan(self, table: str) -> pl.LazyFrame:
        """Return the rows of a table, lazily."""
        schema = SHARED_ACCOUNTS_SCHEMA if table == ACCOUNTS else SHARED_RECORDS_SCHEMA
        return self.storage.scan([table_file(table)], schema)
