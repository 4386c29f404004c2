"""CAR framing against the independent reader's: the same blocks, or refused by both."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.repos.car import index_car
from backfill_dagster.repos.faults import RepoRejectedError
from backfill_dagster_tests.fuzz.reader import UnlawfulError, read_car
from backfill_dagster_tests.repos.forge import car_header, cid_of, frame, varint
from backfill_dagster_tests.repos.plain import spans_of

ROOT = cid_of(b"\xa0")

blocks = (
    st.binary(max_size=40) | st.integers(80, 140).map(bytes) | st.sampled_from([bytes(16_340), bytes(16_400)])
)
sound = st.builds(
    lambda block, codec: frame(cid_of(block, codec), block), blocks, st.sampled_from([0x71, 0x55])
)
corrupt = st.builds(lambda block, other: frame(cid_of(block), other), blocks, blocks)
# A few blocks that come back, so that a CID has several sections, some of them corrupt.
twins = st.builds(lambda block, other: frame(cid_of(block), other), *[st.sampled_from([b"a", b"b"])] * 2)
foreign = st.builds(
    frame,
    st.sampled_from(
        [
            b"\x12\x20" + bytes(32),
            b"\x01\x71\x13\x40" + bytes(64),
            b"\x01\x71\x00\x02hi",
            b"\x01\x71\x12\x20" + bytes(31),
            b"\x01\x71\x12\x21" + bytes(33),
            b"\x01\x80\x01\x12\x20" + bytes(32),
            b"\x02\x71\x12\x20" + bytes(32),
            b"\x01\xf1\x00\x12\x20" + bytes(32),
            b"\x12\x20",
            b"\x01",
            b"",
        ]
    ),
    st.binary(max_size=3) | st.binary(min_size=30, max_size=40),
)
lengths = st.integers(0, 2**70).map(varint) | st.sampled_from(
    [b"\x80\x00", b"\xa5\x00", b"\x80" * 9 + b"\x01", b"\xff"]
)
misframed = st.builds(lambda length, body: length + body, lengths, sound.map(lambda section: section[1:]))


def with_a_longer_length(section: bytes) -> bytes:
    """Write a section's length with a byte more than it takes."""
    digits = 1 + next(place for place, byte in enumerate(section) if byte < 0x80)
    return section[: digits - 1] + bytes([section[digits - 1] | 0x80, 0]) + section[digits:]


misframed |= sound.map(with_a_longer_length)
# A section that ends inside its CID, whatever stands behind it.
misframed |= st.integers(1, 35).map(lambda length: frame(cid_of(b"")[:length], b""))
sections = st.lists(st.one_of(sound, sound, twins, corrupt, foreign), max_size=8)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(sections, st.just(b"") | misframed | st.binary(max_size=5), sections, st.integers(0, 60) | st.just(0))
def test_the_same_blocks_or_none(before: list[bytes], middle: bytes, after: list[bytes], cut: int) -> None:
    content = car_header([ROOT]) + b"".join(before) + middle + b"".join(after)
    content = content[: len(content) - cut]

    try:
        root, expected, count = read_car(content)
    except UnlawfulError:
        root, expected, count = b"", {}, -1
    try:
        index = index_car(content, max_bytes=len(content), max_blocks=1_000)
    except RepoRejectedError:
        assert count == -1
        return
    assert index.root == root == ROOT
    assert {cid: content[start:end] for cid, (start, end) in spans_of(index, content).items()} == expected
