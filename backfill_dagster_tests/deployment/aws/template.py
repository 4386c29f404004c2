"""The CloudFormation template of `configs/deploy/aws`."""

import json
from functools import cache
from typing import Any

from backfill_dagster_tests.conftest import ROOT

FOLDER = ROOT / "configs" / "deploy" / "aws"
TEMPLATE = FOLDER / "stack.yaml"


@cache
def template() -> dict[str, Any]:
    """Return the template with its functions in their long form; not to be changed."""
    # It takes a second to import.
    from cfnlint.decode import decode

    decoded, faults = decode(str(TEMPLATE))
    assert decoded is not None, faults
    return json.loads(json.dumps(decoded))  # type: ignore[no-any-return]


def properties(name: str) -> dict[str, Any]:
    """Return the properties of a resource."""
    return dict(template()["Resources"][name]["Properties"])


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    """Return the resources of a type."""
    return {name: told for name, told in template()["Resources"].items() if told["Type"] == kind}
