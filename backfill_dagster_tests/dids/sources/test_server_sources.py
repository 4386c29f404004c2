"""A study whose source is what servers list: from its YAML to the accounts and their documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from backfill_dagster import pipeline
from backfill_dagster_tests.dids.sources.asking_servers import study_of_sandbox
from backfill_dagster_tests.studies import resolved_directory

if TYPE_CHECKING:
    from pathlib import Path

    from backfill_dagster.sandbox.network import SandboxNetwork

LIKE = "app.bsky.feed.like"


@pytest.mark.parametrize("kind", ["pds", "collection", "list", "plc_export"])
def test_a_study_of_those_whom_servers_list(network: SandboxNetwork, tmp_path: Path, kind: str) -> None:
    owner = next(account.did for account in network.truth.accounts() if account.is_complete)
    uri = network.edit.create_list(owner, "list", network.dids[:7])
    sources: dict[str, dict[str, Any]] = {
        "pds": {"hosts": [f"http://{host}" for host in network.hosts]},
        "collection": {"collection": LIKE, "relay": network.relay_url},
        "list": {"uri": uri},
        "plc_export": {},
    }
    complete = {account.did for account in network.truth.accounts() if account.is_complete}
    with_likes = {
        did for did in complete if any(record.collection == LIKE for record in network.truth.records(did))
    }
    expected = {
        "pds": complete,
        "collection": with_likes,
        "list": complete & set(network.dids[:7]),
        "plc_export": {did for did in complete if did.startswith("did:plc:")},
    }[kind]
    study = study_of_sandbox(
        tmp_path,
        source={"type": kind, **sources[kind]},
        exclude={"type": "inline", "dids": [owner]},
        network={"plc_export": {"use": "always"}},
    )

    collected = pipeline.collect_source(study)
    directory = resolved_directory(study)

    assert owner not in collected.dids["did"]
    assert complete & set(collected.dids["did"]) == expected - {owner}
    assert set(directory.filter(pl.col("state") == "resolved")["did"]) >= expected - {owner}
    # Nothing of what was downloaded for it is left.
    assert not [path for path in (study.root / ".scratch").rglob("*") if path.is_file()]
