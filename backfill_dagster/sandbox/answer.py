"""An answer of a server: what is sent, and how it goes on its way."""

from __future__ import annotations

from dataclasses import dataclass

GET_REPO = "/xrpc/com.atproto.sync.getRepo"

JSON = ("Content-Type", "application/json; charset=utf-8")
HTML = ("Content-Type", "text/html; charset=utf-8")

RATE_LIMIT_BODY = b'{"error":"RateLimitExceeded","message":"Rate Limit Exceeded"}'

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for some seconds, after that many bytes of the body; at 0, before the first header."""

    after_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sends: status, headers and body, and how the body goes on its way.

    A streamed body has no length in the headers, and is compressed if the client allows it and it is not
    encoded already. `endless` is sent after the body, over and over; only a streamed body can have it.
    `pause` and `reset_after` count bytes of the body as they are sent, after compression, and so does
    `bytes_per_second`.
    """

    status: int
    headers: Headers
    body: bytes
    streamed: bool = False
    endless: bytes = b""
    pause: Pause | None = None
    reset_after: int | None = None
    bytes_per_second: float | None = None

    @property
    def is_encoded(self) -> bool:
        """Whether the headers name an encoding of the body."""
        return any(name.lower() == "content-encoding" for name, _ in self.headers)
