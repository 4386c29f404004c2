from collections.abc import Iterator

import pytest

from backfill_dagster_tests.metadata_stores.dynamodb_server import (
    DynamoDb,
    serve_dynamodb,
    set_credentials,
)


@pytest.fixture(scope="session")
def served_dynamodb() -> Iterator[DynamoDb]:
    with serve_dynamodb() as server:
        yield server


@pytest.fixture
def dynamodb(served_dynamodb: DynamoDb, monkeypatch: pytest.MonkeyPatch) -> DynamoDb:
    """An empty DynamoDB, and credentials for it in the environment."""
    set_credentials(monkeypatch)
    served_dynamodb.clear()
    return served_dynamodb
