"""From what the YAML says of a metadata store to the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backfill_dagster.metadata_stores.dynamodb_store import DynamoDbStore
from backfill_dagster.metadata_stores.own_tables import OwnTables
from backfill_dagster.metadata_stores.sqlite_store import SqliteStore
from backfill_dagster.storage import StudyStorage

if TYPE_CHECKING:
    from backfill_dagster.config.metadata_store import MetadataStore
    from backfill_dagster.metadata_stores.store import Store
    from backfill_dagster.stores.location import Location

STORE_KEY = "metadata.sqlite"


def open_store(config: MetadataStore, *, study: str, storage: Location) -> Store:
    """Return the store that has the items of a study, whose folder lies in `storage`; opens nothing yet."""
    if config.type == "dynamodb":
        assert config.table_name is not None  # noqa: S101  the configuration has seen to it
        assert config.region is not None  # noqa: S101
        return DynamoDbStore(
            table=config.table_name, region=config.region, study=study, endpoint_url=config.endpoint_url
        )
    path = store_path(config, study=study, storage=storage)
    return OwnTables(StudyStorage(storage / study)) if path is None else SqliteStore(path, study)


def store_path(config: MetadataStore, *, study: str, storage: Location) -> Path | None:
    """Return the file of a study's store; None if it is kept in none."""
    if config.type != "sqlite" or config.path is not None:
        return config.path
    own = storage / study
    return own / STORE_KEY if isinstance(own, Path) else None
