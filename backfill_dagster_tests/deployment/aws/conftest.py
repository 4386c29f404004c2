from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill_dagster_tests.deployment.aws.cloud import Cloud


@pytest.fixture(scope="session")
def cloud() -> "Iterator[Cloud]":
    """An AWS on loopback in which the stack stands, for all tests of a process: moto has one memory."""
    # It takes seconds to import.
    from backfill_dagster_tests.deployment.aws.cloud import deployed_stack

    with deployed_stack() as cloud:
        yield cloud
