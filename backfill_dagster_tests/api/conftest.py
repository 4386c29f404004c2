from collections.abc import Iterator
from pathlib import Path

import pytest

from backfill_dagster_tests.api.serving_stub import ApiClient, serving
from backfill_dagster_tests.api.stub_dagster import StubDagster

DEMO = """backfill:
  name: demo
  description: A study.
  source: {type: inline, dids: ["did:plc:ewvi7nxzyoun6zhxrhs64oiz"]}
"""


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configs folder of a server that runs in the test's folder; it holds one study, `demo`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "demo.yaml").write_text(DEMO)
    return folder


@pytest.fixture
def dagster(configs: Path) -> StubDagster:
    return StubDagster(configs)


@pytest.fixture
def api(dagster: StubDagster) -> Iterator[ApiClient]:
    """The API in this process, in front of the stub."""
    with serving(dagster) as client:
        yield client
