"""Whatever the OpenAPI document allows, and what it does not, is no error of the server's (schemathesis).

More examples of each operation, for as long as one likes: BACKFILL_FUZZ_EXAMPLES=2000 pytest …/test_fuzz.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from backfill_dagster_tests.api.conftest import DEMO
from backfill_dagster_tests.api.serving_stub import TOKENS, ApiClient, operations_document, serving
from backfill_dagster_tests.api.stub_dagster import StubDagster

EXAMPLES = int(os.environ.get("BACKFILL_FUZZ_EXAMPLES", "8"))
HEADERS = {"Authorization": f"Bearer {TOKENS['everything']}"}
schema = schemathesis.openapi.from_dict(operations_document())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """The API in front of a stub, in a folder of its own, for all examples."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "configs").mkdir()
    (folder / "configs/demo.yaml").write_text(DEMO)
    before = Path.cwd()
    os.chdir(folder)
    with serving(StubDagster(folder / "configs")) as client:
        yield client
    os.chdir(before)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_the_servers_fault(case: schemathesis.Case[Any], served: ApiClient) -> None:
    case.operation.schema.app = served.client.app
    case.call_and_validate(
        app=served.client.app,
        headers=HEADERS,
        checks=[not_a_server_error, status_code_conformance, response_schema_conformance],
    )
