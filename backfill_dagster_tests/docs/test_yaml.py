"""Every piece of a study's YAML that the documentation shows is one that a study can have."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from backfill_dagster.config.study import Study
from backfill_dagster_tests.docs.pages import DEPLOYMENTS, PAGES, ROOT, blocks

SOURCE = {"type": "inline", "dids": ["did:plc:ewvi7nxzyoun6zhxrhs64oiz"]}


def studies(text: str) -> list[dict[str, Any]]:
    """Return what blocks of YAML say of a study; those of a run's configuration, or of other programs, do not."""
    found = []
    for block in blocks(text):
        if block.kind != "yaml":
            continue
        for document in yaml.safe_load_all(block.text):
            body = document.get("backfill", document)
            if set(body) <= set(Study.model_fields):
                found.append(body)
            else:
                assert "backfill" not in document, body
    return found


@pytest.mark.parametrize("page", [*PAGES, *DEPLOYMENTS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_is_shown_of_a_study_is_valid(page: Path) -> None:
    for body in studies(page.read_text(encoding="utf-8")):
        Study.model_validate({"name": "shown", "source": SOURCE, **body})


def test_studies_are_found() -> None:
    assert sum(len(studies(page.read_text(encoding="utf-8"))) for page in PAGES) > 20
