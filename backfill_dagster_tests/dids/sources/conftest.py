from collections.abc import Iterator

import pytest

from backfill_dagster.sandbox.network import SandboxNetwork
from backfill_dagster_tests.dids.sources.asking_servers import SETTINGS
from backfill_dagster_tests.studies import sandbox


@pytest.fixture
def network() -> Iterator[SandboxNetwork]:
    """The sandbox of these tests; without faults and edits before and after."""
    found = sandbox(SETTINGS)
    found.faults.clear()
    found.edit.reset()
    found.requests.clear()
    yield found
    found.faults.clear()
    found.edit.reset()
