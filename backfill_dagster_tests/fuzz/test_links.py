"""Links of any kind, as text: what is written can be read back, so that no two become one."""

from __future__ import annotations

from base64 import b32decode

from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from backfill_dagster.records.blocks import Link
from backfill_dagster.records.record_json import link_text
from backfill_dagster_tests.fuzz.loose_cbor import ODD_CIDS
from backfill_dagster_tests.repos.forge import BASE58, cid_of

VERSION_0 = b"\x12\x20" + bytes(range(32))

links = st.sampled_from([*ODD_CIDS, VERSION_0, cid_of(b"")]) | st.binary(max_size=60)
tails = st.sampled_from([b"", b"", b"\0", b"tail"])


def bytes_of(text: str) -> bytes:
    if text.startswith("Qm"):
        number = 0
        for letter in text:
            number = number * 58 + BASE58.index(letter)
        return number.to_bytes(34)
    assert text.startswith("b")
    body = text[1:].upper()
    return b32decode(body + "=" * (-len(body) % 8))


@examples(max_examples=200, deadline=None, derandomize=True)
@given(links, tails)
@example(cid_of(b""), b"\0")
@example(VERSION_0, b"\0")
def test_links_are_written_in_full(link: bytes, tail: bytes) -> None:
    assert bytes_of(link_text(Link(link + tail))) == link + tail


def test_links_of_version_0_have_their_own_form() -> None:
    assert link_text(Link(VERSION_0)).startswith("Qm")
    assert link_text(Link(VERSION_0 + b"\0")).startswith("b")
