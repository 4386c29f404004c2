"""What every request passes before anything else looks at it: its token, its rate, and the headers of the answer."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

from backfill_dagster.api.answers import error_answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from backfill_dagster.api.rates import Rates
    from backfill_dagster.api.tokens import Caller, Tokens

HEALTH_PATH = "/health"
DOCS_PATH = "/docs"
SCHEMA_PATH = "/openapi.json"
CALLER = "caller"
_BEARER = re.compile(rb"bearer +([A-Za-z0-9\-._~+/]+=*)", re.IGNORECASE)
# Longer than anybody's token, so that a long header costs no long hash.
_MAX_HEADER = 1_024
_CLOSED = "default-src 'none'; frame-ancestors 'none'"
# The page of the docs loads Swagger's scripts from where FastAPI has them.
_DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net; img-src data: https://fastapi.tiangolo.com; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    # Believed over TLS alone, which a proxy in front of this server speaks.
    "strict-transport-security": "max-age=31536000",
}


class Guard:
    """Lets requests through that bring exactly one token that is known; the rest is answered here, bodies unread.

    Whose token it is stands in the scope's state as `caller`. Without a token there is `GET /health` alone, and the
    docs if they are public. An address with too many failed tries is refused only without a token: others may share
    it, behind a proxy, and a token is too long to be found by trying.
    """

    def __init__(self, app: ASGIApp, *, tokens: Tokens, rates: Rates, public_docs: bool) -> None:
        self._app = app
        self._tokens = tokens
        self._rates = rates
        self._open = {HEALTH_PATH, *([DOCS_PATH, SCHEMA_PATH] if public_docs else [])}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on, one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            # A WebSocket; there are none.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, _with_headers(scope["path"], send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET" and scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope.get("client") else ""
        caller = self._caller(scope)
        if caller is None:
            wait = self._rates.blocked(address)
            if wait is not None:
                await _too_many("too many failed tries from this address", wait)(scope, receive, send)
                return
            self._rates.failed(address)
            refusal = error_answer(
                401,
                "unauthorized",
                "needs one header `Authorization: Bearer <token>` with a token that is known",
                headers={"www-authenticate": 'Bearer realm="backfill_dagster"'},
            )
            await refusal(scope, receive, send)
            return
        wait = self._rates.take(caller.name)
        if wait is not None:
            await _too_many("too many requests with this token", wait)(scope, receive, send)
            return
        scope.setdefault("state", {})[CALLER] = caller
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller | None:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        # Of two headers, this server and a proxy before it might each go by another.
        if len(given) != 1 or len(given[0]) > _MAX_HEADER:
            return None
        match = _BEARER.fullmatch(given[0])
        return self._tokens.caller_of(match[1]) if match else None


def _too_many(message: str, seconds: float) -> ASGIApp:
    return error_answer(429, "too_many", message, headers={"retry-after": str(math.ceil(seconds))})


def _with_headers(path: str, send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            headers["content-security-policy"] = _DOCS_POLICY if path == DOCS_PATH else _CLOSED
        await send(message)

    return sending
