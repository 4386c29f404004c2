"""From what the YAML says of a metadata store to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill_dagster.metadata_stores.dynamodb_store import DynamoDbStore
from backfill_dagster.metadata_stores.sqlite_store import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster.config.metadata_store import MetadataStore
    from backfill_dagster.metadata_stores.store import Store

STORE_KEY = "metadata.sqlite"


def open_store(config: MetadataStore, *, study: str, storage: Path) -> Store:
    """Return the store that has the items of a study, whose folder lies in `storage`; opens nothing yet."""
    if config.type == "dynamodb":
        assert config.table_name is not None  # noqa: S101  the configuration has seen to it
        assert config.region is not None  # noqa: S101
        return DynamoDbStore(
            table=config.table_name, region=config.region, study=study, endpoint_url=config.endpoint_url
        )
    return SqliteStore(config.path or storage / study / STORE_KEY, study)
