from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from backfill_dagster_tests.instances import local_instance


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of a test's own, on disk, as the child runs of a study's job need one."""
    with local_instance(tmp_path / "instance") as instance:
        yield instance
