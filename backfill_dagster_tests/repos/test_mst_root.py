"""The root that is made of a tree's contents is the one that its commit names."""

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos import mst_root
from backfill_dagster.repos.car import index_car
from backfill_dagster.repos.cid import CID_BYTES
from backfill_dagster.repos.commit import parse_commit
from backfill_dagster.repos.mst_root import tree_roots
from backfill_dagster.repos.verify import verify_repo
from backfill_dagster.sandbox.dag_cbor import Link
from backfill_dagster.sandbox.mst_writer import build_tree
from backfill_dagster_tests.repos import forge
from backfill_dagster_tests.repos.exported import WHOLE_REPOS, exported_repo

COLLECTIONS = st.sampled_from(["app.bsky.feed.like", "app.bsky.feed.post", "a.b", "a.b.c", "a.b-c"])
RKEYS = st.text("ab01~.:_-", min_size=1, max_size=90)
KEYS = st.builds(lambda collection, rkey: f"{collection}/{rkey}".encode(), COLLECTIONS, RKEYS)
TREES = st.lists(st.lists(KEYS, unique=True, max_size=40).map(sorted), max_size=6)


def value_of(key: bytes) -> forge.Link:
    return forge.cid_of(key)


def sandbox_root(keys: Sequence[bytes]) -> bytes:
    return build_tree((key, Link(value_of(key))) for key in keys).root


def roots_of(trees: list[list[bytes]]) -> list[bytes]:
    keys = [key for tree in trees for key in tree]
    values = np.frombuffer(b"".join(map(value_of, keys)), np.uint8).reshape(-1, CID_BYTES)
    return tree_roots(keys, values, [len(tree) for tree in trees])


@settings(max_examples=60)
@given(TREES)
def test_trees_have_the_roots_that_the_sandbox_writes(trees: list[list[bytes]]) -> None:
    assert roots_of(trees) == [sandbox_root(tree) for tree in trees]


@settings(max_examples=40)
@given(st.lists(KEYS, unique=True, max_size=25).map(sorted))
def test_a_tree_has_the_root_that_a_recursive_reading_of_the_format_gives(tree: list[bytes]) -> None:
    assert roots_of([tree]) == [forge.tree({key: value_of(key) for key in tree})[0]]


def test_layers_that_are_far_apart() -> None:
    keys = sorted([*forge.keys_at_layer(0, 3), *forge.keys_at_layer(5, 1), *forge.keys_at_layer(3, 1)])
    assert roots_of([keys, keys[:2]]) == [
        forge.tree({key: value_of(key) for key in some})[0] for some in (keys, keys[:2])
    ]


def test_more_keys_than_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mst_root, "_KEYS_AT_ONCE", 100)
    numbers = random.Random(1).sample(range(10**9), 450)
    keys = sorted(f"app.bsky.feed.like/{number:09}".encode() for number in numbers)
    assert roots_of([keys]) == [sandbox_root(keys)]


@pytest.mark.parametrize("name", WHOLE_REPOS)
def test_repositories_of_official_software(name: str) -> None:
    exported = exported_repo(name)
    repo = verify_repo(exported.car, did=exported.did, keys=[], check_signature=False)
    keys = [
        f"{collection}/{rkey}".encode()
        for collection, rkey in zip(repo.collections.to_pylist(), repo.rkeys.to_pylist(), strict=True)
    ]
    values = [exported.car[start - CID_BYTES : start] for start in repo.starts.tolist()]
    rows = np.frombuffer(b"".join(values), np.uint8).reshape(-1, CID_BYTES)
    assert tree_roots(keys, rows, [len(keys)]) == [parse_commit(repo.commit_block).data]
    index = index_car(exported.car, max_bytes=2**30, max_blocks=2**20)
    assert hashlib.sha256(repo.commit_block).digest() == index.root[-32:]


@pytest.mark.parametrize("change", ["drop", "add", "swap", "value"])
def test_another_content_has_another_root(change: str) -> None:
    tree = {key: value_of(key) for key in forge.keys_at_layer(0, 5) + forge.keys_at_layer(1, 2)}
    keys = sorted(tree)
    match change:
        case "drop":
            del tree[keys[3]]
        case "add":
            tree[b"app.bsky.feed.post/zzz"] = value_of(b"zzz")
        case "swap":
            tree[keys[0]], tree[keys[1]] = tree[keys[1]], tree[keys[0]]
        case "value":
            tree[keys[6]] = value_of(b"another")
    values = np.frombuffer(b"".join(tree[key] for key in sorted(tree)), np.uint8).reshape(-1, CID_BYTES)
    assert tree_roots(sorted(tree), values, [len(tree)]) != roots_of([keys])
