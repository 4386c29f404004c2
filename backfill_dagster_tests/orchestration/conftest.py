from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from backfill_dagster.report import drawing
from backfill_dagster_tests.instances import local_instance


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance of a test's own, on disk, as the child runs of a study's job need one."""
    with local_instance(tmp_path / "instance") as instance:
        yield instance


@pytest.fixture(autouse=True, scope="session")
def figures_not_rendered() -> Iterator[None]:
    """Have reports composed but for the rendering of their figures, at which no test of a job looks.

    It takes a second, as long as all else that a small study's job does; tests of the report and of the command line
    have it done.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "svg", lambda figure, name, alt: "")
        patch.setattr(drawing, "png_uri", lambda figure, dots_per_inch: "data:,")
        yield
