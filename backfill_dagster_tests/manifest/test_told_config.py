"""The configuration as the manifest shows it: whole, but without secrets and people."""

import json
from pathlib import Path

import pytest
import yaml

from backfill_dagster.config.loading import load_study
from backfill_dagster.config.study import Study
from backfill_dagster.manifest.told_config import config_digest, told_config

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


def study(folder: Path, **parts: object) -> Study:
    body = {"name": "study", "source": {"type": "inline", "dids": [DID]}, **parts}
    (folder / "study.yaml").write_text(yaml.safe_dump({"backfill": body}))
    return load_study(folder / "study.yaml")


def test_all_settings_are_told_with_their_defaults(tmp_path: Path) -> None:
    told = told_config(study(tmp_path, fetch="list_records"))
    assert told["fetch"] == "list_records"
    assert told["network"]["plc_url"] == "https://plc.directory"
    # The label under which a build is frozen is no part of how it was made.
    assert set(told) == set(Study.model_fields) - {"snapshot"}


def test_what_the_environment_filled_in_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_PLACE", str(tmp_path / "sesame"))
    told = told_config(study(tmp_path, storage={"path": "${SECRET_PLACE}/data"}))
    assert told["storage"]["path"] == "${SECRET_PLACE}/data"
    assert "sesame" not in json.dumps(told)


def test_nobody_is_named(tmp_path: Path) -> None:
    query = f"SELECT did FROM accounts WHERE did != '{DID}'"
    source = {"type": "sqlite", "path": "list.sqlite", "query": query}
    told = json.dumps([told_config(study(tmp_path)), told_config(study(tmp_path, source=source))])
    assert DID not in told
    assert '"dids": {"entries": 1}' in told
    assert "WHERE did != 'did:" in told


def test_an_address_is_told_without_its_user(tmp_path: Path) -> None:
    told = told_config(study(tmp_path, description="see https://me:sesame@example.com/x"))
    assert told["description"] == "see https://example.com/x"


def test_other_settings_have_another_digest(tmp_path: Path) -> None:
    first, again, other = (
        told_config(study(tmp_path, **parts)) for parts in ({}, {}, {"inactive_accounts": "keep"})
    )
    assert config_digest(first) == config_digest(again) != config_digest(other)
