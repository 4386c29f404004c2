"""Verification against the independent reader, on repositories of any keys, in any order of blocks."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.keys import SigningKey
from backfill_dagster.repos.verify import verify_repo
from backfill_dagster_tests.fuzz.draft import SIGNERS, Draft, entry_of, tree_of
from backfill_dagster_tests.fuzz.reader import Repo, UnlawfulError, read_repo
from backfill_dagster_tests.repos.forge import DID, cid_of, keys_at_layer, tree
from backfill_dagster_tests.repos.plain import PlainRepo, plain_repo

if TYPE_CHECKING:
    from backfill_dagster_tests.fuzz.draft import Node
    from backfill_dagster_tests.repos.forge import Signer

# Few labels, so that keys share beginnings; any text, so that they do not.
labels = st.sampled_from(["app", "app0", "app-", "bsky", "feed", "post"]) | st.text(min_size=1, max_size=4)
collections = st.lists(labels, min_size=1, max_size=4).map(".".join) | st.sampled_from(
    ["app", "app0", "app-", "app."]
)
rkeys = (
    st.text(alphabet="23ab", min_size=1, max_size=6)
    | st.text(max_size=8)
    | st.sampled_from(["self", "a" * 512])
)
paths = st.tuples(collections, rkeys).map(lambda parts: "/".join(parts).encode())
high_paths = st.sampled_from([key for layer in (2, 3, 4) for key in keys_at_layer(layer, 4)])
records = st.dictionaries(paths | high_paths, st.binary(max_size=40), max_size=50)


def read(draft: Draft, car: bytes) -> Repo:
    return read_repo(car, draft.did, draft.signer.did_key)


def verify(draft: Draft, car: bytes) -> PlainRepo:
    repo = verify_repo(car, did=draft.did, keys=[SigningKey.from_did_key(draft.signer.did_key)])
    return plain_repo(repo, car)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(records, st.sampled_from(SIGNERS), st.sets(st.integers(0, 49)), st.integers())
def test_a_repository_is_read_as_the_reader_reads_it(
    records: dict[bytes, bytes], signer: Signer, raw: set[int], order: int
) -> None:
    draft = Draft(DID, signer, records)
    draft.raw = {key for number, key in enumerate(sorted(records)) if number in raw}
    sections = list(draft.sections)
    Random(order).shuffle(sections)
    draft.sections = sections
    car = draft.car()

    verified, expected = verify(draft, car), read(draft, car)

    blocks = [car[start:end] for start, end in verified.spans]
    assert {key: block for key, (_, block) in expected.leaves.items()} == records
    assert blocks == [block for _, block in expected.leaves.values()]
    assert verified.cids == [cid for cid, _ in expected.leaves.values()]
    paths = zip(verified.collections, verified.rkeys, strict=True)
    assert ["/".join(path).encode() for path in paths] == list(expected.leaves) == sorted(records)


def judged_alike(draft: Draft) -> bool:
    """Say whether a repository is lawful, after making sure that both say so and read the same."""
    car = draft.car()
    try:
        expected = list(read(draft, car).leaves)
    except UnlawfulError:
        with pytest.raises(RepoRejectedError) as caught:
            verify(draft, car)
        assert caught.value.fault is RepoFault.BAD_TREE
        return False
    repo = verify(draft, car)
    assert ["/".join(path).encode() for path in zip(repo.collections, repo.rkeys, strict=True)] == expected
    return True


few_records = st.dictionaries(paths | high_paths, st.just(b"\xa0"), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(few_records, st.dictionaries(st.integers(0, 19), st.integers(0, 3), max_size=2))
def test_keys_on_other_layers_are_lawful_for_neither(
    records: dict[bytes, bytes], elsewhere: dict[int, int]
) -> None:
    draft = Draft(DID, SIGNERS[0], records)
    keys = sorted(records)
    layers = {keys[place]: layer for place, layer in elsewhere.items() if place < len(keys)}
    leaves = dict.fromkeys(records, cid_of(b"\xa0"))
    _ = draft.tree
    draft.tree = tree_of(leaves, layers)
    right_root, _ = tree(leaves)

    assert judged_alike(draft) == (draft.commit["data"] == right_root)


def exchange_keys(top: Node, first: int, second: int) -> None:
    """Let two keys change places, each in the form that its new place asks for: only order and layer can be wrong."""
    waiting, nodes = [top], []
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        waiting += [
            child for child in (node.left, *(entry.tree for entry in node.entries)) if child is not None
        ]
    keys: list[bytes] = []
    for node in nodes:
        before = b""
        for entry in node.entries:
            before = before[: entry.prefix] + entry.rest
            keys.append(before)
    first, second = first % len(keys), second % len(keys)
    keys[first], keys[second] = keys[second], keys[first]
    for node in nodes:
        before = b""
        for entry in node.entries:
            key = keys.pop(0)
            fresh = entry_of(key, entry.value, entry.tree, before)
            entry.prefix, entry.rest, before = fresh.prefix, fresh.rest, key


@settings(max_examples=80, deadline=None, derandomize=True)
@given(few_records, st.integers(0, 19), st.integers(0, 19))
def test_keys_in_each_others_places_are_lawful_for_neither(
    records: dict[bytes, bytes], first: int, second: int
) -> None:
    draft = Draft(DID, SIGNERS[0], records)
    exchange_keys(draft.tree, first, second)

    assert judged_alike(draft) == (first % len(records) == second % len(records))
