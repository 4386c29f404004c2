"""Ports on loopback, the sites behind them, and how an answer goes on its way, with what is to go wrong."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import math
import re
import socket
import struct
import time
from typing import TYPE_CHECKING

from aiohttp import web

from backfill_dagster.sandbox.servers import WEB_DOCUMENT, Query, Site

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from backfill_dagster.sandbox.answer import Answer
    from backfill_dagster.sandbox.faults import Faults
    from backfill_dagster.sandbox.request_log import RequestLog

_ADDRESS = "127.0.0.1"
_PIECE = 64 * 1024
_BACKLOG = 1024
# aiohttp takes 0 for no limit.
_GRACE_SECONDS = 0.01
# A slow body comes in pieces that take about this long.
_DRIP_SECONDS = 0.05
_DID_IN_PATH = re.compile(r"/(did:[^/]+)")


class Door:
    """One port of `127.0.0.1`. It keeps its number while it is closed.

    A request goes to the site that its `Host` header names, and without a known one to the door's own. `open`
    and `shut` belong into the event loop's thread.
    """

    def __init__(self, host: str, sites: Mapping[str, Site], faults: Faults, log: RequestLog) -> None:
        self._host = host
        self._sites = sites
        self._faults = faults
        self._log = log
        self._runner: web.ServerRunner | None = None
        # Bound and not listening: the port is ours, and connections to it are refused.
        self._socket = _bind(0)
        self._port: int = self._socket.getsockname()[1]

    @property
    def address(self) -> str:
        """Where it is, as `127.0.0.1:PORT`."""
        return f"{_ADDRESS}:{self._port}"

    async def open(self) -> None:
        """Listen."""
        if self._runner is not None:
            return
        server = web.Server(self._serve, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=_GRACE_SECONDS)
        await runner.setup()
        await web.SockSite(runner, self._socket, backlog=_BACKLOG).start()
        self._runner = runner

    async def shut(self) -> None:
        """Cut all connections and refuse new ones."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for connection in runner.server.connections if runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        self._socket = _bind(self._port)

    def release(self) -> None:
        """Give the port up."""
        self._socket.close()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        host = (request.headers.get("Host") or "").lower()
        asked = host = host.removesuffix(":80")
        if host not in self._sites:
            host = self._host
        path, parameters = request.path, request.query
        did = _did_of(host, path, parameters)
        agent = request.headers.get("User-Agent", "")
        entry = self._log.begin(host=host, method=request.method, path=path, did=did, user_agent=agent)
        try:
            meant = await self._sites[host].answer(Query(request.method, path, parameters, asked))
            answer = self._faults.change(meant, host=host, path=path, did=did)
            entry.status, entry.body_bytes = answer.status, len(answer.body)
            return await _send(request, answer)
        finally:
            entry.ended = time.monotonic()


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((_ADDRESS, port))
    return bound


def _did_of(host: str, path: str, parameters: Mapping[str, str]) -> str | None:
    """Say which account a request is about."""
    if path == WEB_DOCUMENT:
        return f"did:web:{host}"
    named = _DID_IN_PATH.match(path)
    return named[1] if named else parameters.get("did", parameters.get("repo"))


async def _send(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    body = answer.body
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    if not answer.streamed:
        response.content_length = len(body)
    else:
        response.enable_chunked_encoding()
        accepted = request.headers.get("Accept-Encoding", "")
        if "gzip" in accepted and not answer.endless and not answer.is_encoded:
            response.headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 6, mtime=0)

    pause, reset_after = answer.pause, answer.reset_after
    if pause is not None and pause.after_bytes == 0:
        await asyncio.sleep(pause.seconds)
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    sent = 0
    marks = [mark for mark in (pause and pause.after_bytes, reset_after) if mark]
    speed = answer.bytes_per_second
    largest = _PIECE if speed is None else max(1, min(_PIECE, int(speed * _DRIP_SECONDS)))
    parts = itertools.chain([body], itertools.repeat(answer.endless) if answer.endless else ())
    for piece in _pieces(parts, marks, largest):
        if sent == reset_after:
            break
        if pause is not None and 0 < sent == pause.after_bytes:
            await asyncio.sleep(pause.seconds)
        await response.write(piece)
        sent += len(piece)
        # Without a word to the loop, a client that takes all at once would have this thread for itself.
        await asyncio.sleep(0 if speed is None else len(piece) / speed)
    if reset_after is not None:
        _reset(request)
    return response


def _pieces(parts: Iterable[bytes], marks: list[int], largest: int) -> Iterator[bytes]:
    """Cut a body into pieces of bounded length, so that one begins at each mark inside of it."""
    place = 0
    for part in parts:
        start = 0
        while start < len(part):
            to_mark = min((mark - place for mark in marks if mark > place), default=math.inf)
            stop = int(min(start + largest, len(part), start + to_mark))
            yield part[start:stop]
            place += stop - start
            start = stop


def _reset(request: web.BaseRequest) -> None:
    """Cut the connection with RST, as a server that has crashed does."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
