"""The tests' own builder is held against data made by others, before anything is held against it."""

import base64
import json
from pathlib import Path

import libipld
import pytest

from backfill_dagster_tests.repos.exported import WHOLE_REPOS, exported_repo
from backfill_dagster_tests.repos.forge import cbor, cid_of, head, link_of_text, of_json, tree


def test_the_protocols_fixtures_are_written_byte_for_byte(shared_dir: Path) -> None:
    fixtures = json.loads((shared_dir / "vectors/interop/data-model/data-model-fixtures.json").read_text())

    for fixture in fixtures:
        block = cbor(of_json(fixture["json"]))
        assert block == base64.b64decode(fixture["cbor_base64"] + "==")
        assert cid_of(block) == link_of_text(fixture["cid"])


@pytest.mark.parametrize("number", [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
def test_heads_have_their_shortest_form(number: int) -> None:
    assert head(0, number) == libipld.encode_dag_cbor(number)


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_the_trees_of_real_repositories_are_rebuilt_block_by_block(name: str) -> None:
    repo = exported_repo(name)
    leaves = {
        uri.removeprefix(f"at://{repo.did}/").encode(): link_of_text(cid)
        for uri, cid in repo.live_records.items()
    }

    _, blocks = tree(leaves)

    assert all(cid + block in repo.car for cid, block in blocks.items())
