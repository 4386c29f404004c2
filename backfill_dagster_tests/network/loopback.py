"""Servers on loopback for tests, that answer just what a test wants, and a client with times fit for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import web

from backfill_dagster.network.addresses import AddressPolicy, Lookup
from backfill_dagster.network.http import HttpClient

if TYPE_CHECKING:
    import ssl

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Talk = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[str]:
    """Answer every GET by `handler`; gives `127.0.0.1:port`."""

    async def route(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", route)
    # A handler that waits is ended when its client hangs up.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_bytes(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Hand each request's head to `talk`, which writes whatever bytes it likes; gives `127.0.0.1:port`."""

    talks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await talk(await reader.readuntil(b"\r\n\r\n"), writer)
                await writer.drain()
        finally:
            talks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"{host}:{port}"
    finally:
        server.close()
        under_way = list(talks)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def answering(head: str, body: bytes = b"") -> Talk:
    """Return a talk that writes this head (lines, without the last blank one) and body, and hangs up."""

    async def talk(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head.strip().replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

    return talk


def loopback_client(
    *,
    allow_private: bool = True,
    connect_to: Mapping[str, str] | None = None,
    connect_timeout: float = 2,
    read_timeout: float = 2,
    contact: str | None = None,
    min_bytes_per_second: float = 0,
    pace_grace: float = 30,
    tls: ssl.SSLContext | None = None,
    lookup: Lookup | None = None,
) -> HttpClient:
    """Return a client with short times that may talk to loopback."""
    return HttpClient(
        AddressPolicy(allow_private=allow_private, connect_to=connect_to),
        contact=contact,
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        min_bytes_per_second=min_bytes_per_second,
        pace_grace=pace_grace,
        ssl_context=tls,
        lookup=lookup,
    )
