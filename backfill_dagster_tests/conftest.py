import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says more of the machine than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Tests that need more than Python, or more time: each marker has an option of its name that opts in.
OPT_IN = {
    "live": "tests against the official PLC and PDS servers",
    "daemon": "tests of a study that runs itself under `dagster dev`",
    "walkthrough": "the tutorial, command by command",
    "browser": "tests of the UI in Chromium",
    "prometheus": "tests of the metrics in Prometheus itself",
    "postgres": "tests of the single-host deployment on Postgres",
    "celery": "tests of the Celery deployment on Postgres and Redis",
    "aws": "tests of the deployment on ECS, in an AWS on loopback",
    "kubernetes": "tests of the deployment on Kubernetes, by its schemas",
}


# The files that take longest: begun last, one of them would keep a single core busy while the others wait.
LONGEST = (
    "crash/test_crash.py",
    "orchestration/test_study_job.py",
    "orchestration/test_command_line.py",
    "test_incremental_tables.py",
    "crash/test_job.py",
    "test_fault_matrix.py",
    "orchestration/test_two_steps.py",
    "test_refresh.py",
    "orchestration/test_sensors.py",
    "orchestration/test_fetch_modes.py",
    "benchmarks/test_benchmarks.py",
    "tables/test_incremental.py",
    "test_pipeline.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Leave the garbage collector off while the tests are imported, and then leave alone what they have imported.

    It stays. To look for garbage in it takes a fifth of that time, in each of the processes that share the tests out.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Let go of it all at the end, so that no library finds something of its own still in use."""
    gc.unfreeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker, tests in OPT_IN.items():
        parser.addoption(f"--{marker}", action="store_true", help=f"run {tests}")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one file more at once than there are cores: many tests wait for servers, timers or child processes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, tests in OPT_IN.items():
        if config.getoption(f"--{marker}"):
            continue
        skip = pytest.mark.skip(reason=f"{tests}: run pytest --{marker}")
        for item in items:
            # By the marker itself: a folder of its name is a keyword, too.
            if item.get_closest_marker(marker):
                item.add_marker(skip)
    places = {ROOT / "backfill_dagster_tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Test data made by others, beside the checkout: protocol vectors, exported repositories, real servers."""
    shared = ROOT.parent / "shared"
    if not shared.is_dir():
        pytest.skip(f"no shared test data at {shared}")
    return shared


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 on loopback, for all tests of a process."""
    # It takes a second to import.
    from backfill_dagster_tests.dids.sources.s3_server import serve_s3

    with serve_s3() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An S3 on loopback in the environment, with one bucket, and a client of it."""
    from backfill_dagster_tests.dids.sources.s3_server import point_to_s3

    return point_to_s3(monkeypatch, s3_url)
