"""Undoes a body's Content-Encoding as it streams in, in pieces of bounded size (RFC 9110, section 8.4).

We ask for `identity`; some servers compress all the same, and a small body can decode to an unbounded one.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 256 * 1024
_AUTO_GZIP = 31
_ZLIB = 15
_RAW_DEFLATE = -15


class BadEncodingError(Exception):
    """The body is not what its Content-Encoding says, or says what we do not read."""


class IncompleteEncodingError(Exception):
    """The body ended before its compressed stream did."""


class Identity:
    """A body that is not compressed."""

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the chunk as it is."""
        yield chunk

    def finish(self) -> None:
        """Any length is a whole body."""


class Gzip:
    """One gzip member after another (RFC 1952)."""

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self._padding = b""

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what the chunk decodes to, in pieces; raises BadEncodingError."""
        while chunk:
            if self._member is None:
                chunk = chunk.lstrip(self._padding)
                if not chunk:
                    return
                self._member = zlib.decompressobj(_AUTO_GZIP)
            yield from _inflate(self._member, chunk)
            chunk = self._member.unused_data
            if self._member.eof:
                # Zeros after a member are padding, which some servers leave.
                self._member, self._padding = None, b"\0"

    def finish(self) -> None:
        """Raise IncompleteEncodingError if a member has begun and not ended."""
        if self._member is not None:
            raise IncompleteEncodingError("the gzip stream is cut short")


class Deflate:
    """A zlib stream, or the bare DEFLATE stream that some servers send under the same name."""

    def __init__(self) -> None:
        self._stream: zlib._Decompress | None = None
        self._head = b""

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what the chunk decodes to, in pieces; raises BadEncodingError."""
        if self._stream is None:
            self._head += chunk
            if len(self._head) < 2:
                return
            zlib_header = self._head[0] & 0x0F == 8 and int.from_bytes(self._head[:2]) % 31 == 0
            self._stream = zlib.decompressobj(_ZLIB if zlib_header else _RAW_DEFLATE)
            chunk = self._head
        yield from _inflate(self._stream, chunk)
        if self._stream.unused_data:
            raise BadEncodingError("there are bytes after the deflate stream")

    def finish(self) -> None:
        """Raise IncompleteEncodingError if the stream has begun and not ended."""
        if self._head and not (self._stream and self._stream.eof):
            raise IncompleteEncodingError("the deflate stream is cut short")


def decoder_for(content_encoding: str) -> Identity | Gzip | Deflate:
    """Return a decoder for one body; raises BadEncodingError for codings that nobody asked for."""
    coding = content_encoding.strip().lower()
    if coding in ("", "identity"):
        return Identity()
    if coding in ("gzip", "x-gzip"):
        return Gzip()
    if coding == "deflate":
        return Deflate()
    raise BadEncodingError(f"cannot read the content encoding {coding[:100]!r}")


def _inflate(stream: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
    full = True
    # A piece of full size may leave output behind in the decompressor even when all input is used up.
    # What follows the end of the stream is not this stream's, and stays where it is.
    while not stream.eof and (chunk or full):
        try:
            piece = stream.decompress(chunk, _PIECE)
        except zlib.error as error:
            raise BadEncodingError(f"the compressed stream is damaged: {error}") from None
        full = len(piece) == _PIECE
        if piece:
            yield piece
        chunk = stream.unconsumed_tail
