from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--live", action="store_true", help="run tests against the official PLC and PDS servers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--live"):
        return
    skip = pytest.mark.skip(reason="needs the official servers: run pytest --live")
    for item in items:
        if "live" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Test data made by others, beside the checkout: protocol vectors, exported repositories, real servers."""
    shared = ROOT.parent / "shared"
    if not shared.is_dir():
        pytest.skip(f"no shared test data at {shared}")
    return shared
