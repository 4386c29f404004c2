import struct
from typing import Any

import cbrrr
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.records.blocks import (
    MAX_NESTING,
    Link,
    decode_blocks,
    has_reserved_key,
    may_hold_links,
    may_hold_reserved_keys,
)
from backfill_dagster.records.outcomes import RejectReason
from backfill_dagster_tests.records.batches import cbor

LINK = b"\x01\x71\x12\x20" + bytes(32)
TAGGED = b"\xd8\x2a\x58\x25\x00" + LINK


def flags(block: bytes) -> tuple[bool, bool]:
    column = pl.DataFrame({"block": [block]}, schema={"block": pl.Binary})
    return column.select(
        links=may_hold_links(pl.col("block")), keys=may_hold_reserved_keys(pl.col("block"))
    ).row(0)


def decode(*blocks: bytes) -> tuple[list[dict[str, Any]], list[tuple[int, RejectReason]]]:
    records, failures = decode_blocks(blocks, [flags(block)[0] for block in blocks])
    assert all(failure.detail for failure in failures)
    return records, [(failure.position, failure.reason) for failure in failures]


def field(encoded: bytes) -> bytes:
    """Write {"a": <encoded>}."""
    return b"\xa1\x61a" + encoded


def test_links_and_byte_strings_of_the_same_bytes_are_told_apart() -> None:
    records, _ = decode(
        field(TAGGED), field(b"\x58\x24" + LINK), b"\xa2\x61a" + TAGGED + b"\x61b\x58\x24" + LINK
    )
    kinds = [[type(value) for value in record.values()] for record in records]
    assert kinds == [[Link], [bytes], [Link, bytes]]
    assert [value for record in records for value in record.values()] == [LINK] * 4


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        (b"\xfb" + struct.pack(">d", 1.5), 1.5),
        (b"\xfb" + struct.pack(">d", -0.0), -0.0),
        (b"\xfa" + struct.pack(">f", 1.5), 1.5),
        (b"\x1b" + b"\xff" * 8, 2**64 - 1),
        (b"\x3b" + b"\xff" * 8, -(2**64)),
        (b"\x63a\0b", "a\0b"),
        (b"\x64\xf0\x9f\xa6\x8b", "🦋"),
    ],
)
def test_odd_values_are_decoded(encoded: bytes, value: Any) -> None:
    records, failures = decode(field(encoded))
    assert failures == []
    assert repr(records) == repr([{"a": value}])


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\xa1",
        b"\xa0\x00",
        field(b"\x61\xff"),
        field(b"\x63\xed\xa0\x80"),
        field(b"\xfb" + struct.pack(">d", float("nan"))),
        field(b"\xfb" + struct.pack(">d", float("inf"))),
        field(b"\xf7"),
        field(b"\xc1\x01"),
        field(b"\x9f\xff"),
        field(b"\x9b\x00\x00\x00\x10" + bytes(4)),
        field(b"\x7b\x7f" + b"\xff" * 7),
        field(TAGGED[:10]),
        b"\xa2\x61a\x01\x61a\x02",
        b"\xa2\x61b\x01\x61a\x02",
        b"\xa1\x01\x02",
    ],
)
@pytest.mark.parametrize("beside_a_link", [False, True])
def test_what_is_not_dag_cbor_costs_itself_only(block: bytes, beside_a_link: bool) -> None:
    good = field(TAGGED) if beside_a_link else b"\xa0"
    may_link = [True, beside_a_link, True]
    records, failures = decode_blocks([good, block, good], may_link)
    assert len(records) == 2
    assert [(failure.position, failure.reason) for failure in failures] == [(1, RejectReason.UNDECODABLE)]


@pytest.mark.parametrize("block", [b"\x80", b"\x61a", b"\x01", b"\xf6", b"\x41a", TAGGED])
def test_what_is_no_map_is_no_record(block: bytes) -> None:
    assert decode(block) == ([], [(0, RejectReason.NOT_A_MAP)])


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x60"], ids=["lists", "maps"])
@pytest.mark.parametrize("core", [b"\x01", TAGGED], ids=["number", "link"])
def test_nesting_has_a_bound(opening: bytes, core: bytes) -> None:
    too_deep = [(0, RejectReason.TOO_DEEP)]
    records, failures = decode(field(opening * (MAX_NESTING - 1) + core))
    assert failures == []
    assert len(records) == 1
    assert decode(field(opening * MAX_NESTING + core)) == ([], too_deep)
    assert decode(field(opening * 500_000 + core)) == ([], too_deep)


def test_breadth_is_no_depth() -> None:
    wide = cbor({"a": [[] for _ in range(5_000)], "b": "é" * 2_000})
    assert decode(wide)[1] == []


def test_links_in_longer_forms_are_never_taken_for_byte_strings() -> None:
    for head in (b"\xd9\x00\x2a", b"\xda\x00\x00\x00\x2a", b"\xdb" + bytes(7) + b"\x2a"):
        assert decode(field(head + TAGGED[2:])) == ([], [(0, RejectReason.UNDECODABLE)])


def test_reserved_keys_are_found_at_any_depth_and_only_as_keys() -> None:
    assert flags(cbor({"a": "$link"})) == (False, True)
    assert flags(cbor({"a": "link"})) == (False, False)
    assert not has_reserved_key({"a": "$link", "b": ["$bytes"]})
    assert has_reserved_key({"a": [{"b": {"$link": 1}}]})
    assert has_reserved_key({"$bytes": None})


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=6) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), json_like | st.just(cbrrr.CID(LINK)), max_size=4))
def test_both_decoders_read_what_was_written(record: dict[str, Any]) -> None:
    block = cbor(record)
    read, failures = decode_blocks([block, block], [flags(block)[0], True])
    assert failures == []
    assert [as_written(record) for record in read] == [record, record]
    assert [repr(record) for record in read[:1]] == [repr(record) for record in read[1:]]


def as_written(value: Any) -> Any:
    if type(value) is Link:
        return cbrrr.CID(bytes(value))
    if isinstance(value, dict):
        return {key: as_written(child) for key, child in value.items()}
    return [as_written(child) for child in value] if isinstance(value, list) else value


@given(st.binary(max_size=80))
def test_no_bytes_at_all_raise(block: bytes) -> None:
    records, failures = decode_blocks([block, block], [False, True])
    assert len(records) + len(failures) == 2
