from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from collections import Counter
from typing import Any

import cbrrr
import libipld
import pytest
from atproto_core.car import CAR  # type: ignore[import-untyped]
from atproto_crypto.verify import verify_signature  # type: ignore[import-untyped]

from backfill_dagster.config.network import SandboxSettings
from backfill_dagster.sandbox.account_state import first_state
from backfill_dagster.sandbox.accounts import Accounts
from backfill_dagster.sandbox.dag_cbor import cid_text
from backfill_dagster.sandbox.population import Account, Population, Role
from backfill_dagster.sandbox.repo import Repo, Repos
from backfill_dagster.sandbox.truth import Truth

from .reading import frames, walk

SETTINGS = SandboxSettings(accounts=60, hosts=5, records=100)
POPULATION = Population(SETTINGS)
ACCOUNTS = Accounts(POPULATION)
REPOS = Repos(POPULATION)
WITH_REPO = [account for account in POPULATION.accounts if account.has_repo]
# One block in each that decoders of whole files refuse, as they must.
UNREADABLE = {Role.INVALID_UTF8, Role.NOT_RECORDS}


@pytest.fixture(scope="module")
def repos() -> dict[str, Repo]:
    return {account.did: REPOS.build(first_state(account)) for account in WITH_REPO}


def plain(value: Any) -> Any:
    """Write what cbrrr decodes as JSON data. Its own mode for that refuses floats."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, cbrrr.CID):
        return {"$link": value.encode()}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
    return value


def records_in(repo: Repo) -> dict[str, bytes]:
    blocks = dict(frames(repo.car)[1])
    commit: Any = libipld.decode_dag_cbor(blocks[repo.commit])
    return {key: blocks[cid] for key, cid in walk(blocks, commit["data"], set())}


def test_every_file_is_whole_and_holds_nothing_else(repos: dict[str, Repo]) -> None:
    for repo in repos.values():
        header, found = frames(repo.car)
        assert libipld.decode_dag_cbor(header) == {"version": 1, "roots": [bytes(repo.commit)]}
        blocks = dict(found)
        assert len(blocks) == len(found)
        for cid, block in found:
            assert cid[:2] in (b"\x01\x71", b"\x01\x55")
            assert cid[2:] == b"\x12\x20" + hashlib.sha256(block).digest()
        commit: Any = libipld.decode_dag_cbor(blocks[repo.commit])
        visited = {bytes(repo.commit)}
        leaves = list(walk(blocks, commit["data"], visited))
        assert [key.encode() for key, _ in leaves] == sorted(key.encode() for key, _ in leaves)
        assert visited | {cid for _, cid in leaves} == set(blocks)


def test_blocks_come_in_no_order(repos: dict[str, Repo]) -> None:
    firsts = [frames(repo.car)[1][0][0] == repo.commit for repo in repos.values() if len(repo.car) > 10_000]
    assert sum(firsts) <= 2


def test_the_official_sdk_reads_the_files(repos: dict[str, Repo]) -> None:
    for account in WITH_REPO:
        repo = repos[account.did]
        if account.role in UNREADABLE:
            with pytest.raises(Exception, match=r"(?i)invalid|failed|unsupported"):
                CAR.from_bytes(repo.car)
            continue
        car = CAR.from_bytes(repo.car)
        assert str(car.root) == cid_text(repo.commit)
        assert len(car.blocks) == len(frames(repo.car)[1])


def test_commits_are_signed_by_the_key_of_the_account(repos: dict[str, Repo]) -> None:
    curves = Counter[str]()
    for account in WITH_REPO:
        repo = repos[account.did]
        commit: Any = libipld.decode_dag_cbor(dict(frames(repo.car)[1])[repo.commit])
        assert set(commit) == {"did", "version", "data", "rev", "prev", "sig"}
        assert (commit["did"], commit["version"], commit["prev"]) == (account.did, 3, None)
        assert commit["rev"] == repo.rev
        signature = commit.pop("sig")
        unsigned = libipld.encode_dag_cbor(commit)
        current, previous = (f"did:key:{key.multikey}" for key in (account.current_key, account.previous_key))
        is_previous = account.role is Role.PREVIOUS_KEY
        assert verify_signature(current, unsigned, signature) is not is_previous
        assert verify_signature(previous, unsigned, signature) is is_previous
        curves[account.curve.name] += 1
    assert set(curves) == {"K256", "P256"}


def test_truth_is_what_the_files_hold(repos: dict[str, Repo]) -> None:
    """By cbrrr, which tells links from byte strings: keys, CIDs and values, field by field."""
    truth = Truth(ACCOUNTS, REPOS)
    compared = 0
    for account in WITH_REPO:
        if not truth.account(account.did).is_complete:
            assert truth.records(account.did) == []
            continue
        found = records_in(repos[account.did])
        expected = {f"{record.collection}/{record.rkey}": record for record in truth.records(account.did)}
        assert list(found) == list(expected)
        for key, block in found.items():
            record = expected[key]
            codec = "bafkrei" if record.defect == "raw_codec" else "bafyrei"
            assert record.cid.startswith(codec)
            if record.value is not None:
                assert plain(cbrrr.decode_dag_cbor(block)) == record.value
                compared += 1
            elif record.is_undecodable:
                with pytest.raises(ValueError, match="utf-8"):
                    libipld.decode_dag_cbor(block)
    assert compared > 5000


def test_another_process_writes_the_same_bytes(repos: dict[str, Repo]) -> None:
    script = (
        "import hashlib, sys\n"
        "from backfill_dagster.config.network import SandboxSettings\n"
        "from backfill_dagster.sandbox.account_state import first_state\n"
        "from backfill_dagster.sandbox.population import Population\n"
        "from backfill_dagster.sandbox.repo import Repos\n"
        "population = Population(SandboxSettings.model_validate_json(sys.argv[1]))\n"
        "repos = Repos(population)\n"
        "for account in reversed(population.accounts):\n"
        "    if account.has_repo:\n"
        "        print(account.did, hashlib.sha256(repos.build(first_state(account)).car).hexdigest())\n"
    )
    command = [sys.executable, "-c", script, SETTINGS.model_dump_json()]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = dict(line.split() for line in output.splitlines())
    assert theirs == {did: hashlib.sha256(repo.car).hexdigest() for did, repo in repos.items()}


def test_an_account_does_not_depend_on_what_was_written_before(repos: dict[str, Repo]) -> None:
    account = WITH_REPO[-1]
    assert Repos(POPULATION).build(first_state(account)).car == repos[account.did].car


def account_of(role: Role) -> Account:
    return next(account for account in POPULATION.accounts if account.role is role)


def test_an_empty_repository_is_as_large_as_the_official_one(repos: dict[str, Repo]) -> None:
    assert len(repos[account_of(Role.EMPTY).did].car) == 329


def test_one_block_stands_under_several_keys(repos: dict[str, Repo]) -> None:
    repo = repos[account_of(Role.SHARED_BLOCK).did]
    commit: Any = libipld.decode_dag_cbor(dict(frames(repo.car)[1])[repo.commit])
    cids = Counter(cid for _, cid in walk(dict(frames(repo.car)[1]), commit["data"], set()))
    assert sorted(cids.values())[-2:] == [3, 3]
