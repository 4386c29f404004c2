"""A withdrawn account in the words of others: masked there, and nothing else is touched."""

from typing import Any

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfill_dagster.purge.mentions import (
    canonical_did,
    mask_block,
    mask_text,
    may_name_purged,
    names_purged,
)

PLC = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
OTHER_PLC = "did:plc:z72i7hdynmk6r22z27h6tvur"
MASKED_PLC = "did:plc:xxxxxxxxxxxxxxxxxxxxxxxx"
WEB = "did:web:ann.example.co"
MASKED_WEB = "did:web:xxx.xxxxxxx.xx"
LENGTHS = {len(WEB)}


def is_purged(did: str) -> bool:
    return did in (PLC, WEB)


def masked(value: Any) -> Any:
    block = cbrrr.encode_dag_cbor(value)
    result = mask_block(block, is_purged, LENGTHS)
    assert len(result) == len(block)
    return cbrrr.decode_dag_cbor(result)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PLC, MASKED_PLC),
        (f"at://{PLC}/app.bsky.feed.post/3k", f"at://{MASKED_PLC}/app.bsky.feed.post/3k"),
        (f"ask {PLC}, or {OTHER_PLC}!", f"ask {MASKED_PLC}, or {OTHER_PLC}!"),
        (f"{PLC}and more", f"{MASKED_PLC}and more"),
        (f"https://x.test/{PLC.replace(':', '%3A')}", f"https://x.test/{MASKED_PLC.replace(':', '%3A')}"),
        (WEB, MASKED_WEB),
        (f"It was {WEB}.", f"It was {MASKED_WEB}."),
        (WEB.replace("ann.example", "Ann.Example"), MASKED_WEB),
        (f"{WEB}m", f"{WEB}m"),
        (f"www.{WEB}/.well-known", f"www.{MASKED_WEB}/.well-known"),
        ("did:web:example.co", "did:web:example.co"),
        ("", ""),
    ],
)
def test_text_is_masked_in_place(text: str, expected: str) -> None:
    assert mask_text(text, is_purged) == expected
    assert names_purged(text, is_purged) == (text != expected)


def test_all_spellings_of_one_host_are_one_did() -> None:
    assert canonical_did("did%3aweb%3AAnn.Example.CO") == WEB
    # The characters of a did:plc are case-sensitive, and so are its letters.
    assert canonical_did(PLC) == PLC


@pytest.mark.parametrize("follows", ["", "a", "createdAt", "e" * 47])
def test_the_byte_after_a_text_is_no_part_of_the_did(follows: str) -> None:
    # Keys of 1 to 23 bytes begin with a head that is a lower-case letter itself.
    record = {"a": WEB, f"zz{follows}": [f"{WEB}m", WEB, PLC, 7, f"at://{WEB}/a.b.c/1"]}
    assert masked(record) == {
        "a": MASKED_WEB,
        f"zz{follows}": [f"{WEB}m", MASKED_WEB, MASKED_PLC, 7, f"at://{MASKED_WEB}/a.b.c/1"],
    }


def test_keys_and_byte_strings_are_masked_too() -> None:
    assert masked({PLC: {"x": PLC.encode() + b"\xff"}}) == {MASKED_PLC: {"x": MASKED_PLC.encode() + b"\xff"}}


def test_a_block_that_names_nobody_purged_is_the_same_object() -> None:
    block = cbrrr.encode_dag_cbor({"subject": OTHER_PLC, "text": f"{WEB}m"})
    assert mask_block(block, is_purged, set()) is block
    # What only begins like a purged host seems to be it until its texts are read.
    assert may_name_purged(block, is_purged, LENGTHS)
    assert mask_block(block, is_purged, LENGTHS) == block


@pytest.mark.parametrize("tail", [b"", b"\xff", b"\x9f\x01"])
def test_bytes_that_are_no_record_are_masked_all_the_same(tail: bytes) -> None:
    block = b"\xfe garbage " + PLC.encode() + b" " + WEB.encode() + tail
    result = mask_block(block, is_purged, LENGTHS)
    assert result == b"\xfe garbage " + MASKED_PLC.encode() + b" " + MASKED_WEB.encode() + tail


TEXTS = st.lists(
    st.sampled_from([PLC, OTHER_PLC, WEB, f"{WEB}m", "é", " ", ".", "a", "did:"]), max_size=6
).map("".join)


@given(
    st.recursive(TEXTS | st.integers(0, 300), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))
)
def test_every_text_of_a_block_is_masked_as_it_would_be_alone(value: Any) -> None:
    def expected(part: Any) -> Any:
        if isinstance(part, str):
            return mask_text(part, is_purged)
        if isinstance(part, list):
            return [expected(item) for item in part]
        if isinstance(part, dict):
            return {mask_text(key, is_purged): expected(item) for key, item in part.items()}
        return part

    block = cbrrr.encode_dag_cbor(value)
    result = mask_block(block, is_purged, LENGTHS)
    assert len(result) == len(block)
    if not names_purged(str(value), is_purged) or not _has_keys(value):
        assert cbrrr.decode_dag_cbor(result) == expected(value)


def _has_keys(value: object) -> bool:
    """Whether there is a map, whose keys can change their order or become equal when they are masked."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_has_keys, value)))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_no_bytes_around_a_did_make_masking_fail_or_leave_it(before: bytes, after: bytes) -> None:
    result = mask_block(before + PLC.encode() + after, is_purged, LENGTHS)
    assert len(result) == len(before) + len(PLC) + len(after)
    assert PLC.encode() not in result
