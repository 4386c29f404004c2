"""From what the YAML says of a source to what reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from backfill_dagster.config.sources import (
    AssetSource,
    CollectedSource,
    CollectionSource,
    CsvSource,
    ExceptSource,
    HandlesSource,
    InlineSource,
    ListSource,
    ParquetSource,
    PdsSource,
    PlcExportSource,
    S3Source,
    SharedSource,
    Source,
    SqliteSource,
    TextSource,
    UnionSource,
)
from backfill_dagster.dids.sources.asset import AssetEntries
from backfill_dagster.dids.sources.bluesky_list import ListEntries
from backfill_dagster.dids.sources.collected import CollectedEntries
from backfill_dagster.dids.sources.collection import CollectionEntries
from backfill_dagster.dids.sources.csv_table import CsvEntries
from backfill_dagster.dids.sources.difference import ExceptEntries
from backfill_dagster.dids.sources.files import Columns
from backfill_dagster.dids.sources.handles import HandleEntries
from backfill_dagster.dids.sources.inline import InlineEntries
from backfill_dagster.dids.sources.parquet import ParquetEntries
from backfill_dagster.dids.sources.pds import PdsEntries
from backfill_dagster.dids.sources.plc_export import PlcExportEntries
from backfill_dagster.dids.sources.s3 import S3Entries
from backfill_dagster.dids.sources.shared import SharedAccounts
from backfill_dagster.dids.sources.sqlite import SqliteEntries
from backfill_dagster.dids.sources.tabular import TabularEntries
from backfill_dagster.dids.sources.text import TextEntries
from backfill_dagster.dids.sources.union import UnionEntries
from backfill_dagster.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

    from backfill_dagster.dids.entries import EntrySource, SourceAccess
    from backfill_dagster.stores.location import Location


def entry_source(config: Source, field: str, *, storage: Location, column: str = "did") -> EntrySource:
    """Return what reads a source, whose field in the YAML is given; opens nothing.

    `storage` is where the study's own backfills are stored, `column` the one to read where the YAML names none.
    """

    def member(part: Source, place: str) -> EntrySource:
        return entry_source(part, f"{field}.{place}", storage=storage, column=column)

    match config:
        case UnionSource():
            parts = [member(part, f"sources.{number}") for number, part in enumerate(config.sources)]
            return UnionEntries(parts, field)
        case ExceptSource():
            return ExceptEntries(member(config.source, "source"), member(config.without, "without"), field)
        case InlineSource():
            return InlineEntries(config, field)
        case CollectedSource():
            return CollectedEntries(config, field, storage)
        case SharedSource():
            return SharedAccounts(config, field)
        case HandlesSource() | PdsSource() | CollectionSource() | ListSource() | PlcExportSource():
            return _from_servers(config, field)
        case _:
            return _tabular(config, field, storage, column)


def read_columns(
    config: Source, field: str, columns: Sequence[str], access: SourceAccess, *, storage: Location
) -> Iterator[pl.DataFrame]:
    """Yield columns of a file-like source as text, in batches of at most BATCH_ROWS; null where empty.

    What is no text is turned into it; dates and times become ISO 8601, those with a time zone in UTC. Raises
    SourceError for a source without columns, and if it cannot be read.
    """
    source = entry_source(config, field, storage=storage)
    if not isinstance(source, TabularEntries):
        raise SourceError(f"{field}.type = {config.type!r}: has no columns to read")
    return source.read(Columns(tuple(columns), f"{field}: column", any_type=True), access)


def _from_servers(
    config: HandlesSource | PdsSource | CollectionSource | ListSource | PlcExportSource, field: str
) -> EntrySource:
    match config:
        case HandlesSource():
            return HandleEntries(config, field)
        case PdsSource():
            return PdsEntries(config, field)
        case CollectionSource():
            return CollectionEntries(config, field)
        case ListSource():
            return ListEntries(config, field)
        case PlcExportSource():
            return PlcExportEntries(config, field)
        case _:
            assert_never(config)


def _tabular(
    config: TextSource | CsvSource | ParquetSource | SqliteSource | S3Source | AssetSource,
    field: str,
    storage: Location,
    column: str,
) -> TabularEntries:
    match config:
        case TextSource():
            return TextEntries(config, field, column)
        case CsvSource():
            return CsvEntries(config, field, column)
        case ParquetSource(path=str(address)):
            remote = S3Source(type="s3", path=address, format="parquet", column=config.column)
            return S3Entries(remote, field, column)
        case ParquetSource():
            return ParquetEntries(config, field, column)
        case SqliteSource():
            return SqliteEntries(config, field, column)
        case S3Source():
            return S3Entries(config, field, column)
        case AssetSource():
            return AssetEntries(config, field, column, storage)
        case _:
            assert_never(config)
