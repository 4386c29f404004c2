import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill_dagster.network.content_encoding import (
    BadEncodingError,
    IncompleteEncodingError,
    decoder_for,
)


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "X-GZIP": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
}


def decode(coding: str, body: bytes, step: int) -> bytes:
    decoder = decoder_for(coding)
    out = bytearray()
    for start in range(0, len(body), step):
        for piece in decoder.decode(body[start : start + step]):
            assert len(piece) <= max(step, 256 * 1024)
            out += piece
    decoder.finish()
    return bytes(out)


@settings(deadline=None)
@given(st.sampled_from(sorted(ENCODERS)), st.binary(max_size=3000), st.integers(1, 500))
def test_a_body_comes_out_as_it_went_in(coding: str, data: bytes, step: int) -> None:
    assert decode(coding, ENCODERS[coding](data), step) == data


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 3_000_000])
def test_a_body_that_grows_comes_out_whole_and_in_pieces(coding: str, size: int) -> None:
    assert decode(coding, ENCODERS[coding](b"\0" * size), 1 << 16) == b"\0" * size


def test_gzip_members_may_follow_each_other_with_padding() -> None:
    body = gzip.compress(b"one ", mtime=0) + gzip.compress(b"two", mtime=0) + b"\0\0\0\0"

    assert decode("gzip", body, 7) == b"one two"
    assert decode("gzip", body, 1) == b"one two"


@settings(deadline=None)
@given(st.sampled_from(["gzip", "deflate", "Deflate"]), st.binary(min_size=1, max_size=300), st.data())
def test_a_stream_that_is_cut_anywhere_is_told(coding: str, data: bytes, draw: st.DataObject) -> None:
    body = ENCODERS[coding](data)
    cut = draw.draw(st.integers(1, len(body) - 1))

    with pytest.raises((IncompleteEncodingError, BadEncodingError)):
        decode(coding, body[:cut], 64)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"<html>not gzip</html>"),
        ("gzip", gzip.compress(b"x", mtime=0) + b"garbage"),
        ("deflate", b"\xff" * 50),
        ("deflate", zlib.compress(b"x") + b"garbage"),
    ],
)
def test_what_is_not_what_it_says_is_damaged(coding: str, body: bytes) -> None:
    with pytest.raises(BadEncodingError):
        decode(coding, body, 8)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "chunked", "x" * 9000])
def test_codings_that_nobody_asked_for_are_refused(coding: str) -> None:
    with pytest.raises(BadEncodingError) as caught:
        decoder_for(coding)
    assert len(str(caught.value)) < 200


def test_a_large_member_with_another_behind_it_in_one_chunk_ends() -> None:
    first, second = b"a" * 600_000, b"b" * 600_000
    decoder = decoder_for("gzip")
    pieces = b"".join(decoder.decode(gzip.compress(first, mtime=0) + gzip.compress(second, mtime=0)))
    decoder.finish()
    assert pieces == first + second
