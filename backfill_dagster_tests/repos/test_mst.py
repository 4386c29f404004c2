import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import libipld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos.car import index_car
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.limits import RepoLimits
from backfill_dagster.repos.mst import key_layer
from backfill_dagster.repos.mst_node import MAX_KEY_BYTES, decode_node
from backfill_dagster_tests.repos.forge import (
    Link,
    car,
    cbor,
    cid_of,
    entry,
    head,
    keys_at_layer,
    layer_of,
    node,
    ordered_map,
    tree,
)
from backfill_dagster_tests.repos.plain import PlainLeaves, plain_leaves, spans_of

LIMITS = RepoLimits()
VALUE = cid_of(b"value")
OTHER_VALUE = cid_of(b"other value")
LOW = keys_at_layer(0, 40)
MIDDLE = keys_at_layer(1, 10)
HIGH = keys_at_layer(2, 4)


def walk(root: bytes, blocks: Mapping[Link, bytes], limits: RepoLimits = LIMITS) -> PlainLeaves:
    content = car(cid_of(b"no commit"), blocks)
    index = index_car(content, max_bytes=limits.max_car_bytes, max_blocks=limits.max_blocks)
    return plain_leaves(content, index, root, limits)


def refusal(root: bytes, blocks: Mapping[Link, bytes], limits: RepoLimits = LIMITS) -> RepoFault:
    with pytest.raises(RepoRejectedError) as caught:
        walk(root, blocks, limits)
    return caught.value.fault


def linked(*nodes: bytes) -> tuple[Link, dict[Link, bytes]]:
    """The blocks of a tree made by hand, its top last."""
    blocks = {cid_of(block): block for block in nodes}
    return cid_of(nodes[-1]), blocks


def leaf(*keys: bytes) -> bytes:
    """A node of these keys with shortened prefixes, and no subtrees."""
    return node([entry(key, VALUE, previous=before) for before, key in zip((b"", *keys), keys, strict=False)])


def leaves_of(*keys: bytes) -> dict[bytes, Link]:
    return dict.fromkeys(keys, VALUE)


# The protocol's own data


def test_layers_of_keys_are_those_of_the_protocols_vectors(shared_dir: Path) -> None:
    for vector in json.loads((shared_dir / "vectors/interop/mst/key_heights.json").read_text()):
        assert key_layer(vector["key"].encode()) == vector["height"] == layer_of(vector["key"].encode())
    for key in (shared_dir / "vectors/interop/mst/example_keys.txt").read_text().split():
        assert key_layer(key.encode()) == int(key[1])


def test_shared_prefixes_are_those_of_the_protocols_vectors(shared_dir: Path) -> None:
    vectors = json.loads((shared_dir / "vectors/interop/mst/common_prefix.json").read_text())
    pairs = [(v["left"].encode(), v["right"].encode(), v["len"]) for v in vectors]
    ascending = [(left, right, shared) for left, right, shared in pairs if b"" < left < right]

    assert len(ascending) >= 4
    for left, right, shared in ascending:
        for claimed in range(len(left) + 2):
            block = node([entry(left, VALUE), {"p": claimed, "k": right[claimed:], "v": VALUE, "t": None}])
            if claimed == shared:
                assert decode_node(block, max_entries=2).keys == [left, right]
            else:
                assert refusal(*linked(block)) is RepoFault.BAD_TREE


@pytest.mark.parametrize("number", range(128))
def test_every_shape_of_a_tree_of_seven_keys(shared_dir: Path, number: int) -> None:
    """The file's number says which keys are there: the n-th key, if its n-th bit from the right is set."""
    keys = [b"k/00", b"k/02", b"k/04", b"k/39", b"k/40", b"k/48", b"k/49"]
    content = (shared_dir / f"vectors/mst/cars/exhaustive/exhaustive_{number:03d}.car").read_bytes()
    expected = {
        key: cid_of(cbor({"$type": "mst-test-data", "value_for": key.decode()}))
        for bit, key in enumerate(keys)
        if number >> bit & 1
    }

    index = index_car(content, max_bytes=10_000, max_blocks=7)
    leaves = plain_leaves(content, index, index.root, LIMITS)

    assert dict(zip(leaves.keys, leaves.cids, strict=True)) == expected
    assert leaves.keys == sorted(expected)
    assert tree(expected) == (
        index.root,
        {Link(cid): content[slice(*span)] for cid, span in spans_of(index, content).items()},
    )


# Sound trees


def test_an_empty_tree_has_one_empty_node() -> None:
    assert walk(*linked(node([]))) == ([], [])


def test_empty_nodes_lead_from_a_high_key_to_low_ones() -> None:
    left, right = leaf(LOW[0]), leaf(LOW[-1])
    to_left, to_right = node([], left=cid_of(left)), node([], left=cid_of(right))
    top = node([entry(HIGH[0], VALUE, cid_of(to_right))], left=cid_of(to_left))

    assert LOW[0] < HIGH[0] < LOW[-1]
    assert walk(*linked(left, right, to_left, to_right, top)).keys == [LOW[0], HIGH[0], LOW[-1]]


def test_records_of_both_codecs_and_one_block_under_two_keys() -> None:
    raw = cid_of(b"raw", codec=0x55)
    leaves = {LOW[0]: raw, LOW[1]: VALUE, MIDDLE[1]: raw}

    assert walk(*tree(leaves)) == (sorted(leaves), [leaves[key] for key in sorted(leaves)])


def test_keys_as_long_as_allowed() -> None:
    key = b"k/" + b"x" * (MAX_KEY_BYTES - 2)

    assert walk(*tree(leaves_of(key))).keys == [key]
    assert refusal(*tree(leaves_of(key + b"x"))) is RepoFault.BAD_TREE
    assert refusal(*tree(leaves_of(key[:-4], key[:-4] + b"xxxxx"))) is RepoFault.BAD_TREE


@pytest.mark.parametrize("count", [23, 24, 25, 255, 256, 300])
def test_nodes_of_many_entries(count: int) -> None:
    keys = keys_at_layer(0, count)

    assert walk(*linked(leaf(*keys))).keys == keys


def walk_by_recursion(cid: bytes, blocks: Mapping[Link, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The definition of the format, for sound trees only."""
    fields = libipld.decode_dag_cbor(blocks[Link(cid)])
    if fields["l"]:
        yield from walk_by_recursion(fields["l"], blocks)
    key = b""
    for item in fields["e"]:
        key = key[: item["p"]] + item["k"]
        yield key, item["v"]
        if item["t"]:
            yield from walk_by_recursion(item["t"], blocks)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.binary(min_size=1, max_size=6), st.sampled_from([VALUE, OTHER_VALUE]), max_size=80))
def test_any_tree_is_walked_in_order(leaves: dict[bytes, Link]) -> None:
    root, blocks = tree(leaves)

    walked = walk(root, blocks)

    assert list(zip(*walked, strict=True)) == sorted(leaves.items()) == list(walk_by_recursion(root, blocks))


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 999), min_size=1, max_size=60), st.data())
def test_a_tree_without_one_of_its_blocks_is_incomplete(numbers: set[int], data: st.DataObject) -> None:
    root, blocks = tree(leaves_of(*(f"com.example.record/{number}".encode() for number in numbers)))
    lost = data.draw(st.sampled_from(sorted(blocks)))
    without = {cid: block for cid, block in blocks.items() if cid != lost}

    assert refusal(root, without) is RepoFault.MISSING_BLOCK
    assert refusal(root, without | {lost: b"something else"}) is RepoFault.CORRUPT_BLOCK


# Hostile trees


def raw_node(entries: bytes, left: bytes = b"\xf6") -> bytes:
    return b"\xa2\x61e" + entries + b"\x61l" + left


def raw_entry(**changes: bytes) -> bytes:
    """One entry of a valid node, field by field as bytes; a changed field takes another's place."""
    fields = {"k": cbor(LOW[0]), "p": b"\x00", "t": b"\xf6", "v": cbor(VALUE)} | changes
    return b"\xa4" + b"".join(cbor(name) + value for name, value in fields.items())


def test_the_hostile_nodes_below_start_from_a_sound_one() -> None:
    assert walk(*linked(raw_node(b"\x81" + raw_entry()))).keys == [LOW[0]]


BAD_BLOCKS: dict[str, bytes] = {
    "no bytes": b"",
    "not CBOR": b"\xff",
    "not a map": cbor([]),
    "a record": cbor({"$type": "app.bsky.feed.post", "text": "e"}),
    "a number": cbor(5),
    "no entries": cbor({"l": None}),
    "no left": cbor({"e": []}),
    "another field": cbor({"e": [], "l": None, "x": None}),
    "other names": cbor({"a": [], "b": None}),
    "entries are text": raw_node(b"\x61x"),
    "entries are a map": raw_node(b"\xa1\x61x\x00"),
    "entries are null": raw_node(b"\xf6"),
    "an entry is a list": raw_node(b"\x81\x84" + cbor(LOW[0]) + b"\x00\xf6" + cbor(VALUE)),
    "an entry is null": raw_node(b"\x81\xf6"),
    "an entry has another field": raw_node(b"\x81\xa5" + raw_entry()[1:] + b"\x61x\x00"),
    "an entry lacks its tree": cbor({"e": [{"k": LOW[0], "p": 0, "v": VALUE}], "l": None}),
    "fields of a node in another order": ordered_map([("l", None), ("e", [])]),
    "fields of an entry in another order": raw_node(
        b"\x81" + ordered_map([("p", 0), ("k", LOW[0]), ("t", None), ("v", VALUE)])
    ),
    "bytes after the node": node([]) + b"\x00",
    "a list of unknown length": raw_node(b"\x9f" + raw_entry() + b"\xff"),
    "a count in a longer form": raw_node(b"\x98\x01" + raw_entry()),
    "a prefix in a longer form": raw_node(b"\x81" + raw_entry(p=b"\x18\x00")),
    "a key in a longer form": raw_node(b"\x81" + raw_entry(k=b"\x59\x00" + bytes([len(LOW[0])]) + LOW[0])),
    "a link in a longer form": raw_node(b"\x81" + raw_entry(v=b"\xd8\x2a\x59\x00\x25\x00" + VALUE)),
    "a value that is a byte string": raw_node(b"\x81" + raw_entry(v=cbor(bytes(VALUE)))),
    "a value that is null": raw_node(b"\x81" + raw_entry(v=b"\xf6")),
    "a value that is text": raw_node(b"\x81" + raw_entry(v=cbor("x" * 36))),
    "a key that is text": raw_node(b"\x81" + raw_entry(k=cbor(LOW[0].decode()))),
    "a key that is a link": raw_node(b"\x81" + raw_entry(k=cbor(VALUE))),
    "a key that is a number": raw_node(b"\x81" + raw_entry(k=b"\x05")),
    "a prefix that is text": raw_node(b"\x81" + raw_entry(p=b"\x610")),
    "a prefix that is negative": raw_node(b"\x81" + raw_entry(p=b"\x20")),
    "a prefix that is false": raw_node(b"\x81" + raw_entry(p=b"\xf4")),
    "a prefix that is a float": raw_node(b"\x81" + raw_entry(p=b"\xfb" + bytes(8))),
    "a prefix beyond any number": raw_node(b"\x81" + raw_entry(p=b"\x1b" + b"\xff" * 8)),
    "a first key with a prefix": raw_node(b"\x81" + raw_entry(p=b"\x01")),
    "a first key that is empty": raw_node(b"\x81" + raw_entry(k=b"\x40")),
    "a longer prefix than the key before": node(
        [entry(LOW[0], VALUE), {"p": len(LOW[0]) + 1, "k": b"x", "v": VALUE, "t": None}]
    ),
    "a prefix cut short": node([entry(LOW[0], VALUE), {"p": 3, "k": LOW[1][3:], "v": VALUE, "t": None}]),
    "a key twice": node([entry(LOW[0], VALUE), entry(LOW[0], VALUE, previous=LOW[0])]),
    "keys descending": node([entry(LOW[1], VALUE), entry(LOW[0], VALUE, previous=LOW[1])]),
    "deep nesting": b"\x81" * 100_000 + b"\xf6",
    "deep nesting in an entry": raw_node(b"\x81" + raw_entry(t=b"\x81" * 100_000 + b"\xf6")),
    "lists that claim to be long": (b"\x9a\x00\x1f\x00\x00" * 400_000)[: 2**20],
    "a CID of SHA-512": raw_node(b"\x81" + raw_entry(v=cbor(Link(b"\x01\x71\x13\x40" + bytes(64))))),
    "a CID of version 0": raw_node(b"\x81" + raw_entry(v=cbor(Link(b"\x12\x20" + bytes(32))))),
}


@pytest.mark.parametrize("block", BAD_BLOCKS.values(), ids=BAD_BLOCKS.keys())
def test_a_block_that_is_no_proper_node(block: bytes) -> None:
    assert refusal(*linked(block)) is RepoFault.BAD_TREE

    below = node([entry(MIDDLE[0], VALUE)], left=cid_of(block))
    assert refusal(*linked(block, below)) is RepoFault.BAD_TREE


def with_left(key: bytes, left: bytes) -> tuple[Link, dict[Link, bytes]]:
    return linked(left, node([entry(key, VALUE)], left=cid_of(left)))


def with_right(key: bytes, right: bytes) -> tuple[Link, dict[Link, bytes]]:
    return linked(right, node([entry(key, VALUE, cid_of(right))]))


FIRST, SECOND, LAST = leaf(LOW[0]), leaf(LOW[1]), leaf(LOW[-1])
# Of layer 1, between the keys of the nodes above; and of layer 2, after all of these.
MID = next(key for key in MIDDLE if LOW[1] < key < LOW[-1])
TOP = next(key for key in keys_at_layer(2, 20) if key > max(LOW[-1], MIDDLE[-1]))
TWO_BELOW = with_left(MID, node([], left=cid_of(FIRST)))
TWICE = node([entry(MID, VALUE, cid_of(FIRST))], left=cid_of(FIRST))
TOO_FAR = node([entry(MID, VALUE, cid_of(LAST)), entry(MIDDLE[-1], VALUE, previous=MID)])
LINKED_LEFT, LINKED_RIGHT = with_left(MID, FIRST), with_right(MID, LAST)
RAW = cid_of(FIRST, codec=0x55)
RAW_LINKED = node([entry(MID, VALUE)], left=RAW)


def with_byte_strings(root: Link, blocks: dict[Link, bytes], link: Link) -> tuple[Link, dict[Link, bytes]]:
    """The same tree, but for a byte string where its top had this link."""
    top = blocks[root].replace(cbor(link), cbor(bytes(link)))
    return cid_of(top), blocks | {cid_of(top): top}


HOSTILE_TREES: dict[str, tuple[tuple[Link, dict[Link, bytes]], str]] = {
    "the top has only a subtree": (linked(FIRST, node([], left=cid_of(FIRST))), "top node has no keys"),
    "a left subtree is empty": (with_left(MID, node([])), "subtree is empty"),
    "a right subtree is empty": (with_right(MID, node([])), "subtree is empty"),
    "the lowest layer has a left subtree": (with_left(LOW[5], FIRST), "below the lowest layer"),
    "the lowest layer has a right subtree": (with_right(LOW[5], LAST), "below the lowest layer"),
    "an empty node on the lowest layer": (
        (TWO_BELOW[0], TWO_BELOW[1] | linked(FIRST)[1]),
        "below the lowest",
    ),
    "a layer is skipped": (with_left(TOP, FIRST), "of layer 0 stands on layer 1"),
    "layers are mixed in the top": (linked(leaf(*sorted([LOW[0], MID]))), "stands on layer"),
    "layers are mixed below": (with_left(MIDDLE[-1], leaf(LOW[0], MID)), "of layer 1 stands on layer 0"),
    "a higher key stands below": (with_right(MIDDLE[0], leaf(TOP)), "of layer 2 stands on layer 0"),
    "a left subtree stands right": (with_left(MID, LAST), "stands after"),
    "a right subtree stands left": (with_right(MID, FIRST), "stands after"),
    "a subtree stands twice": (linked(FIRST, TWICE), "in two places"),
    "a subtree reaches past the next key": (linked(LAST, TOO_FAR), "stands after"),
    "a left link is a byte string": (with_byte_strings(*LINKED_LEFT, cid_of(FIRST)), "another encoding"),
    "a right link is a byte string": (with_byte_strings(*LINKED_RIGHT, cid_of(LAST)), "another encoding"),
    "a node is linked as raw": ((cid_of(RAW_LINKED), {cid_of(RAW_LINKED): RAW_LINKED, RAW: FIRST}), "kind"),
    "a node is a record": (with_left(MID, cbor({"text": "no node"})), "no tree node"),
}


@pytest.mark.parametrize(("case", "why"), HOSTILE_TREES.values(), ids=HOSTILE_TREES.keys())
def test_a_tree_that_breaks_a_rule(case: tuple[Link, dict[Link, bytes]], why: str) -> None:
    with pytest.raises(RepoRejectedError, match=why) as caught:
        walk(*case)

    assert caught.value.fault is RepoFault.BAD_TREE


def test_a_chain_of_empty_nodes_ends_with_the_layers() -> None:
    chain = [leaf(LOW[0])]
    for _ in range(200):
        chain.append(node([], left=cid_of(chain[-1])))
    chain.append(node([entry(HIGH[-1], VALUE)], left=cid_of(chain[-1])))

    assert refusal(*linked(*chain)) is RepoFault.BAD_TREE


# Limits


TALL = tree(leaves_of(*LOW, *MIDDLE, *HIGH))


@pytest.mark.parametrize(
    ("limit", "needed"),
    [
        ("max_records", len(LOW + MIDDLE + HIGH)),
        ("max_nodes", len(TALL[1])),
        ("max_node_bytes", max(map(len, TALL[1].values()))),
        ("max_node_entries", max(len(decode_node(block, max_entries=99).keys) for block in TALL[1].values())),
        ("max_depth", 2),
        ("max_paths_bytes", sum(map(len, LOW + MIDDLE + HIGH))),
    ],
)
def test_a_tree_may_reach_a_limit_but_not_exceed_it(limit: str, needed: int) -> None:
    enough: Callable[[int], RepoLimits] = lambda value: replace(LIMITS, **{limit: value})  # noqa: E731

    assert len(walk(*TALL, enough(needed)).keys) == len(LOW + MIDDLE + HIGH)
    assert refusal(*TALL, enough(needed - 1)) is RepoFault.TOO_LARGE


def test_heads_of_more_entries_than_are_there() -> None:
    assert refusal(*linked(raw_node(head(4, 60_000) + raw_entry()))) is RepoFault.BAD_TREE
