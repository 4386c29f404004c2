"""What may be decoded at all, and that hostile blocks cost neither time nor memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.records.blocks import MAX_NESTING, decode_blocks
from backfill_dagster.records.outcomes import RejectReason
from backfill_dagster.repos.commit import parse_commit
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster.repos.mst_node import decode_node
from backfill_dagster.repos.nesting import SMALL_BLOCK_BYTES, nests_deeper
from backfill_dagster_tests.fuzz.loose_cbor import Raw, encode
from backfill_dagster_tests.repos.forge import DID, REV, Link, cid_of, entry, keys_at_layer, node

if TYPE_CHECKING:
    from collections.abc import Callable

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=300)
    | st.just(cid_of(b""))
    | st.lists(st.sampled_from([0, -1, None, "", b"", [], {}, 24, "a", [0]]), min_size=60, max_size=140)
    | st.builds(
        lambda item, count, last: [item] * count + last,
        st.sampled_from([0, [], {}, "", [0]]),
        st.integers(60, 90),
        st.sampled_from([[], [0], [24], ["a"]]),
    ),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=5), inner, max_size=30),
    max_leaves=60,
)


def levels_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(levels_of, value.values()), default=0)
    return 1 + max(map(levels_of, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values)
def test_no_honest_block_is_taken_for_a_deeper_one(value: Any) -> None:
    levels = levels_of(value)

    assert not nests_deeper(encode(value), levels)
    assert levels == 0 or nests_deeper(encode(value), levels - 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values, st.data())
def test_a_block_that_is_cut_or_has_a_tail_is_refused(value: Any, data: st.DataObject) -> None:
    block = encode(value)

    with pytest.raises(ValueError):
        nests_deeper(block[: data.draw(st.integers(0, len(block) - 1))], 1_000)
    with pytest.raises(ValueError):
        nests_deeper(block + b"\0", 1_000)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes_are_answered_or_refused(block: bytes) -> None:
    try:
        nests_deeper(block, 3)
    except ValueError:
        return


@pytest.mark.parametrize("levels", [1, 23, MAX_NESTING, 5_000])
@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x60", b"\xd8\x2a\x81"])
def test_levels_are_counted(levels: int, opening: bytes) -> None:
    block = opening * levels + b"\x01"

    assert nests_deeper(block, levels - 1)
    assert not nests_deeper(block, levels)


@pytest.mark.parametrize("empty", [[], {}])
def test_what_is_empty_is_a_level_too_however_many_there_are(empty: object) -> None:
    block = encode([empty] * 1_000 + [0])

    assert nests_deeper(block, 1)
    assert not nests_deeper(block, 2)


def claims(size: int, levels: int, core: bytes) -> bytes:
    """Arrays within each other, each of which claims all the bytes that are left."""
    rest = size - 5 * levels
    return (b"\x9a" + rest.to_bytes(4) + core) * levels + b"\x01" * (rest - levels * len(core))


def cost_of(call: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds that a call takes at best, and the bytes that it holds at most."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    try:
        call()
        return min(seconds), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("size", "levels"), [(100_000, 3_000), (4_000_000, 900), (4_000_000, 400_000)])
def test_a_record_that_claims_more_than_it_has_costs_little(size: int, levels: int, linked: bool) -> None:
    block = b"\xa2\x61a" + encode(cid_of(b"")) + b"\x61b" + claims(size, levels, b"")

    def decode() -> None:
        records, failures = decode_blocks([block], [linked])
        assert records == []
        assert failures[0].reason in (RejectReason.UNDECODABLE, RejectReason.TOO_DEEP)

    seconds, held = cost_of(decode)
    assert seconds < 1
    assert held < 64 * len(block)


@pytest.mark.parametrize(("size", "levels"), [(SMALL_BLOCK_BYTES, 700), (100_000, 3_000), (2_000_000, 900)])
def test_a_node_that_claims_more_than_it_has_costs_little(size: int, levels: int) -> None:
    block = b"\xa2\x61e" + claims(size - 6, levels, b"") + b"\x61l\xf6"

    def decode() -> None:
        with pytest.raises(RepoRejectedError) as caught:
            decode_node(block, max_entries=4096)
        assert caught.value.fault is RepoFault.BAD_TREE

    seconds, held = cost_of(decode)
    assert seconds < 1
    assert held < 2**26


def test_a_large_honest_node_is_read() -> None:
    keys = keys_at_layer(0, 400)
    entries = [
        entry(key, cid_of(key), previous=before) for before, key in zip((b"", *keys), keys, strict=False)
    ]
    block = node(entries)

    assert len(block) > 4 * SMALL_BLOCK_BYTES
    assert decode_node(block, max_entries=4096).keys == keys


@pytest.mark.parametrize("name", ["version", "rev", "prev", "data", "did", "sig"])
@pytest.mark.parametrize(
    "deep", [b"\x81" * 3_000 + b"\x01", b"\xa1\x60" * 3_000 + b"\x01"], ids=["lists", "maps"]
)
def test_a_commit_with_a_field_of_any_depth_is_refused_as_any_other(name: str, deep: bytes) -> None:
    fields = {"did": DID, "version": 3, "data": Link(cid_of(b"")), "rev": REV, "prev": None, "sig": bytes(64)}

    with pytest.raises(RepoRejectedError) as caught:
        parse_commit(encode(fields | {name: Raw(deep)}))

    assert caught.value.fault is RepoFault.BAD_COMMIT
