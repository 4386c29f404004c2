"""An object in S3 as a file that is open for reading: from one place on by one request."""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, Any

from botocore.exceptions import HTTPClientError, IncompleteReadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from _typeshed import WriteableBuffer

# An answer can break off; each try asks for what is still wanted.
_TRIES = 5
_TRY_AGAIN_SECONDS = 0.2


class ObjectFile(io.RawIOBase):
    """An object as it is when it is opened; raises what `errors` makes of an error.

    What is written in its place meanwhile is refused rather than mixed with it. With the client's credentials, and not
    by another library, which would look for some of its own.
    """

    def __init__(
        self, client: Any, bucket: str, name: str, errors: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__()
        self._client = client
        self._place = {"Bucket": bucket, "Key": name}
        self._errors = errors
        head = client.head_object(**self._place)
        self._size: int = head["ContentLength"]
        self._etag: str = head["ETag"]
        self._at = 0
        self._body: Any = None

    def readable(self) -> bool:
        """Tell that it is."""
        return True

    def seekable(self) -> bool:
        """Tell that it is."""
        return True

    def tell(self) -> int:
        """Return the place from which on is read next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on at another place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        at = max(0, start + offset)
        if at != self._at:
            self._break_off()
            self._at = at
        return at

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some bytes; none at the end."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._at)
        if wanted <= 0:
            return 0
        with self._errors():
            content = self._read(wanted)
        view[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        """Let go of it."""
        self._break_off()
        super().close()

    def _read(self, wanted: int) -> bytes:
        for left in reversed(range(_TRIES)):
            content = b""
            try:
                if self._body is None:
                    self._body = self._client.get_object(
                        **self._place, Range=f"bytes={self._at}-", IfMatch=self._etag
                    )["Body"]
                content = self._body.read(wanted)
            except (HTTPClientError, IncompleteReadError):
                if not left:
                    raise
            if content:
                return content
            self._break_off()
            time.sleep(_TRY_AGAIN_SECONDS)
        raise IncompleteReadError(actual_bytes=self._at, expected_bytes=self._size)

    def _break_off(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
