"""An HTTP server whose answers were rendered before it began: it costs its clients nothing but what they do themselves.

    with prepared_server({"/path?query": body}) as server: ...

It runs in a process of its own, so that a client's CPU time is the client's alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.connection import Connection

_PATIENCE_SECONDS = 30
_HEAD_END = b"\r\n\r\n"
# A connection that is being set up must not be refused because hundreds are.
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class PreparedServer:
    """Where the server is, and what it was asked."""

    port: int
    _pipe: Connection

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.port}"

    def first_request_at(self) -> float | None:
        """The unix time at which the first request had come; None if none has."""
        self._pipe.send("first")
        first: float | None = self._pipe.recv()
        return first


@contextmanager
def prepared_server(
    bodies: Mapping[str, bytes], content_type: str = "application/vnd.ipld.car"
) -> Iterator[PreparedServer]:
    """Serve these bodies, each under its path and query, from a process of its own; anything else is 404."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, dict(bodies), content_type), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_PATIENCE_SECONDS):
            raise TimeoutError("the server did not start")
        yield PreparedServer(ours.recv(), ours)
    finally:
        process.terminate()
        process.join()
        ours.close()


def _serve(pipe: Connection, bodies: dict[str, bytes], content_type: str) -> None:
    answers = {path.encode(): _head(200, len(body), content_type) + body for path, body in bodies.items()}
    asyncio.run(_run(pipe, answers))


def _head(status: int, length: int, content_type: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {'OK' if status == 200 else 'Not Found'}",
        f"content-type: {content_type}",
        f"content-length: {length}",
        # What the reference PDS says with every answer.
        "ratelimit-limit: 3000",
        "ratelimit-remaining: 2998",
        f"ratelimit-reset: {int(time.time()) + 300}",
        "ratelimit-policy: 1000000000;w=300",
        "date: Sat, 22 Nov 2025 07:00:00 GMT",
        "connection: keep-alive",
    ]
    return "\r\n".join(lines).encode() + _HEAD_END


async def _run(pipe: Connection, answers: Mapping[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    first: list[float] = []
    server = await loop.create_server(lambda: _Talk(answers, first), "127.0.0.1", 0, backlog=_BACKLOG)

    def answer_parent() -> None:
        try:
            pipe.recv()
            pipe.send(first[0] if first else None)
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            ended.set_result(None)

    loop.add_reader(pipe.fileno(), answer_parent)
    pipe.send(server.sockets[0].getsockname()[1])
    await ended


class _Talk(asyncio.Protocol):
    """One connection, kept alive; a request ends with its head."""

    def __init__(self, answers: Mapping[bytes, bytes], first: list[float]) -> None:
        self._answers = answers
        self._first = first
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if not self._first:
            self._first.append(time.time())
        self._buffer += data
        while (end := self._buffer.find(_HEAD_END)) >= 0:
            # Clients differ in what they escape.
            target = unquote_to_bytes(self._buffer[:end].split(b" ", 2)[1])
            self._buffer = self._buffer[end + len(_HEAD_END) :]
            self._transport.write(self._answers.get(target) or _head(404, 0, "text/plain"))
