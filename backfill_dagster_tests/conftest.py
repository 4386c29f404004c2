from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


# Tests that need more than Python, or more time: each marker has an option of its name that opts in.
OPT_IN = {
    "live": "tests against the official PLC and PDS servers",
    "daemon": "tests of a study that runs itself under `dagster dev`",
    "browser": "tests of the UI in Chromium",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker, tests in OPT_IN.items():
        parser.addoption(f"--{marker}", action="store_true", help=f"run {tests}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, tests in OPT_IN.items():
        if config.getoption(f"--{marker}"):
            continue
        skip = pytest.mark.skip(reason=f"{tests}: run pytest --{marker}")
        for item in items:
            if marker in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Test data made by others, beside the checkout: protocol vectors, exported repositories, real servers."""
    shared = ROOT.parent / "shared"
    if not shared.is_dir():
        pytest.skip(f"no shared test data at {shared}")
    return shared
