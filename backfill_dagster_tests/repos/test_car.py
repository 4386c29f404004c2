import hashlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backfill_dagster.repos import car_bytes
from backfill_dagster.repos.car import CarIndex, index_car
from backfill_dagster.repos.car_bytes import CarBytes, CarFile, open_car
from backfill_dagster.repos.faults import RepoFault, RepoRejectedError
from backfill_dagster_tests.repos.forge import (
    Link,
    car,
    car_header,
    cbor,
    cid_of,
    frame,
    head,
    ordered_map,
    varint,
)
from backfill_dagster_tests.repos.plain import spans_of

BLOCK = cbor({"a": "block"})
CID = cid_of(BLOCK)
HEADER = car_header([CID])
RAW_BLOCK = b"not CBOR at all"
RAW_CID = cid_of(RAW_BLOCK, codec=0x55)


def index(content: CarBytes, *, max_bytes: int = 2**20, max_blocks: int = 1000) -> CarIndex:
    return index_car(content, max_bytes=max_bytes, max_blocks=max_blocks)


def refusal(content: bytes, **limits: int) -> RepoFault:
    with pytest.raises(RepoRejectedError) as caught:
        index(content, **limits)
    return caught.value.fault


def fault_of(found: CarIndex, cid: bytes) -> RepoFault:
    with pytest.raises(RepoRejectedError) as caught:
        found.span(cid)
    return caught.value.fault


def with_header(header: bytes) -> bytes:
    return varint(len(header)) + header + frame(CID, BLOCK)


def test_blocks_are_found_where_they_lie() -> None:
    large = cbor("x" * 20_000)
    content = car(CID, [(CID, BLOCK), (RAW_CID, RAW_BLOCK), (cid_of(large), large), (cid_of(b""), b"")])

    found = index(content)

    assert found.root == CID
    assert {cid: content[start:end] for cid, (start, end) in spans_of(found, content).items()} == {
        CID: BLOCK,
        RAW_CID: RAW_BLOCK,
        cid_of(large): large,
        cid_of(b""): b"",
    }


def test_a_large_file_is_indexed_alike(tmp_path: Path) -> None:
    content = car(CID, [(CID, BLOCK), (RAW_CID, RAW_BLOCK)])
    path = tmp_path / "repo.car"
    path.write_bytes(content)
    with path.open("rb") as file:
        large = CarFile(file.fileno())
        assert spans_of(index(large), large) == spans_of(index(content), content)

    path.write_bytes(content[:-1])
    with path.open("rb") as file, pytest.raises(RepoRejectedError) as caught:
        index(CarFile(file.fileno()))
    assert caught.value.fault is RepoFault.TRUNCATED


def test_a_file_is_read_whole_unless_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "repo.car"
    path.write_bytes(b"12345")
    for limit, kind in ((5, bytes), (4, CarFile)):
        monkeypatch.setattr(car_bytes, "WHOLE_FILE_BYTES", limit)
        with open_car(path) as content:
            assert type(content) is kind
            assert (len(content), content[1:3], content[3:9]) == (5, b"23", b"45")


def test_a_body_without_bytes() -> None:
    assert refusal(b"") is RepoFault.EMPTY_BODY


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body></body></html>",
        b"<html>",
        b'{"error":"RepoNotFound"}',
        b'{"error":"InternalServerError","message":"' + b"x" * 200 + b'"}',
        b"\n\n",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(50),
        bytes(100),
        b"\xff" * 100,
        b"\x80\x00" + bytes(100),
        varint(2**40) + b"\xa2" + bytes(100),
        with_header(cbor({"version": 1})),
        with_header(cbor({"roots": [CID, b"x"], "version": 1})),
        with_header(cbor({"roots": {"a": Link(CID)}, "version": 1})),
        with_header(cbor({"roots": [bytes(CID)], "version": 1})),
        with_header(cbor({"roots": [Link(CID)], "version": "1"})),
        with_header(cbor({"roots": [Link(CID)], "version": True})),
        with_header(cbor({"roots": [Link(CID)]})),
        with_header(cbor({"roots": [Link(CID)], "version": 1}) + b"\0"),
        with_header(ordered_map([("version", 1), ("version", 1)])),
        with_header(b"\xa1\x61a\xc1\x00"),
        with_header(b"\xa1\x62\xff\xff\x00"),
        with_header(cbor([1])),
        with_header(head(5, 1) + b"\x61a" + b"\x99\x1f\x00" * 2000),
    ],
)
def test_a_body_that_is_something_else(content: bytes) -> None:
    assert refusal(content) is RepoFault.NOT_A_CAR


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a\xa1\x67version\x02" + bytes(40),
        with_header(cbor({"roots": [Link(CID)], "version": 2})),
        with_header(cbor({"roots": [Link(CID)], "version": 0})),
        car_header([]) + frame(CID, BLOCK),
        car_header([CID, CID]) + frame(CID, BLOCK),
        car_header([RAW_CID]) + frame(CID, BLOCK),
        car_header([b"\x12\x20" + bytes(32)]) + frame(CID, BLOCK),
    ],
)
def test_a_car_of_another_kind(content: bytes) -> None:
    assert refusal(content) is RepoFault.UNSUPPORTED_CAR


def test_a_cut_anywhere_but_between_blocks_is_seen() -> None:
    first = HEADER + frame(CID, BLOCK)
    content = first + frame(RAW_CID, b"x" * 200)

    for length in range(1, len(content)):
        if length in (len(HEADER), len(first)):
            assert index(content[:length]).root == CID
        else:
            assert refusal(content[:length], max_blocks=2) is RepoFault.TRUNCATED, length


@pytest.mark.parametrize("varint_part", [b"\x80", b"\xff\xff", b"\x80\x80\x80\x80\x80\x80\x80\x80"])
def test_a_length_that_is_cut_is_seen(varint_part: bytes) -> None:
    assert refusal(HEADER + frame(CID, BLOCK) + varint_part) is RepoFault.TRUNCATED


@pytest.mark.parametrize(
    "length",
    [
        bytes([0x80 | len(CID + BLOCK), 0]),
        bytes([0x80 | len(CID + BLOCK), 0x80, 0]),
        b"\xff" * 9 + b"\x01",
        b"\x80" * 12,
    ],
)
def test_a_length_must_be_in_its_shortest_form(length: bytes) -> None:
    assert refusal(HEADER + length + CID + BLOCK) is RepoFault.CORRUPT_BLOCK


@pytest.mark.parametrize(
    "section",
    [
        b"\x00",
        bytes(512),
        b"\x01\x01",
        frame(b"\x01\x71\x12\x20", b"short"),
        frame(b"\x02\x71\x12\x20" + bytes(32), b"version two"),
        frame(b"\x12\x20", b"short"),
        frame(b"no CID", b"x" * 60),
    ],
)
def test_a_section_without_a_cid_is_refused(section: bytes) -> None:
    assert refusal(HEADER + section + frame(CID, BLOCK)) is RepoFault.CORRUPT_BLOCK


def test_blocks_under_other_kinds_of_cids_are_passed_over() -> None:
    others = [
        (b"\x12\x20" + hashlib.sha256(BLOCK).digest(), BLOCK),
        (b"\x12\x20" + bytes(32), b""),
        (b"\x01\x71\x13\x40" + hashlib.sha512(BLOCK).digest(), BLOCK),
        (b"\x01\x71\x11\x14" + hashlib.sha1(BLOCK).digest(), BLOCK),
        (b"\x01\x55\x00\x00", b""),
        (b"\x01\x70\x12\x20" + hashlib.sha256(BLOCK).digest(), BLOCK),
        (b"\x01\x71" + varint(0xB220) + b"\x20" + bytes(32), BLOCK * 20),
    ]

    content = car(CID, [*others, (CID, BLOCK), *others])
    found = index(content)

    assert set(spans_of(found, content)) == {CID}
    assert all(fault_of(found, cid) is RepoFault.BAD_TREE for cid, _ in others)


def test_of_several_blocks_with_one_cid_a_sound_one_serves() -> None:
    wrong = b"something else"
    for blocks in ([BLOCK, wrong], [wrong, BLOCK], [wrong, BLOCK, wrong, BLOCK, wrong]):
        content = car(CID, [(CID, block) for block in blocks])
        start, end = index(content).span(CID)
        assert content[start:end] == BLOCK

    content = car(CID, [(CID, wrong), (CID, b"")])
    assert fault_of(index(content), CID) is RepoFault.CORRUPT_BLOCK


def test_cids_whose_numbers_are_equal_are_told_apart() -> None:
    others = [(cid_of(b"%d" % number), b"%d" % number) for number in range(9)]
    content = car(CID, [*others, (CID, BLOCK), (RAW_CID, b"wrong"), *others])

    def all_equal(cids: NDArray[np.uint8]) -> NDArray[np.uint64]:
        return np.zeros(len(cids), np.uint64)

    with mock.patch("backfill_dagster.repos.car._keys_of", all_equal):
        found = index(content)
        assert len(found.keys) == 10
        for cid, block in (*others, (CID, BLOCK)):
            assert content[slice(*found.span(cid))] == block
        assert fault_of(found, RAW_CID) is RepoFault.CORRUPT_BLOCK
        assert fault_of(found, cid_of(b"absent")) is RepoFault.MISSING_BLOCK


def test_a_block_hidden_in_anothers_frame_is_not_found() -> None:
    hidden = cbor({"text": "hidden"})
    outer = b"x" + frame(cid_of(hidden), hidden)

    content = car(CID, [(CID, BLOCK), (cid_of(outer), outer)])

    assert set(spans_of(index(content), content)) == {CID, cid_of(outer)}


def test_what_a_missing_and_a_corrupt_block_are_called() -> None:
    content = car(CID, [(CID, BLOCK), (RAW_CID, b"something else")])
    found = index(content)

    assert fault_of(found, cid_of(b"absent")) is RepoFault.MISSING_BLOCK
    assert fault_of(found, RAW_CID) is RepoFault.CORRUPT_BLOCK
    assert fault_of(found, b"") is RepoFault.BAD_TREE


def test_limits() -> None:
    content = car(CID, [(CID, BLOCK)] * 10)

    assert index(content, max_bytes=len(content), max_blocks=10)
    assert refusal(content, max_bytes=len(content) - 1) is RepoFault.TOO_LARGE
    assert refusal(content, max_blocks=9) is RepoFault.TOO_LARGE


def frames_by_hand(content: bytes, position: int) -> dict[bytes, bytes]:
    """The blocks of a sound CAR, by arithmetic on digits of base 128."""
    blocks = {}
    while position < len(content):
        digits = [content[position]]
        while digits[-1] >= 128:
            digits.append(content[position + len(digits)])
        length = sum((digit % 128) * 128**place for place, digit in enumerate(digits))
        position += len(digits)
        section = content[position : position + length]
        blocks[section[:36]] = section[36:]
        position += length
    return blocks


@settings(max_examples=50)
@given(
    st.lists(st.binary(max_size=300) | st.binary(max_size=20).map(lambda seed: seed * 1500), max_size=12),
    st.integers(1, 400),
)
def test_framing_agrees_with_arithmetic(blocks: list[bytes], at_once: int) -> None:
    content = car(CID, [(cid_of(block), block) for block in blocks])

    with mock.patch("backfill_dagster.repos.car._BYTES_AT_ONCE", at_once):
        spans = spans_of(index(content), content)

    assert {cid: content[start:end] for cid, (start, end) in spans.items()} == frames_by_hand(
        content, len(HEADER)
    )


@pytest.mark.parametrize("at_once", [1, 36, 37, 80])
def test_a_file_cut_anywhere_is_cut_for_all(at_once: int) -> None:
    content = car(CID, [(CID, BLOCK), (RAW_CID, RAW_BLOCK), (cid_of(b"x" * 200), b"x" * 200)])
    ends = {len(HEADER), *(end for _, end in spans_of(index(content), content).values())}

    with mock.patch("backfill_dagster.repos.car._BYTES_AT_ONCE", at_once):
        for length in range(len(HEADER), len(content)):
            if length in ends:
                index(content[:length])
            else:
                assert refusal(content[:length]) is RepoFault.TRUNCATED


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([b"", HEADER, HEADER + frame(CID, BLOCK)]))
def test_nothing_but_a_refusal_comes_of_random_bytes(tail: bytes, start: bytes) -> None:
    try:
        found = index(start + tail)
    except RepoRejectedError:
        return
    assert found.root == CID
