"""How errors are answered: always the same JSON, which repeats no value of a request's fields."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class AsciiJson(JSONResponse):
    """JSON of ASCII alone: text may hold half characters, which UTF-8 cannot say."""

    def render(self, content: Any) -> bytes:
        """Return the bytes."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_answer(
    status: int,
    code: str,
    message: str,
    *,
    fields: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> AsciiJson:
    """Return the answer for an error; `fields` are those of the request that are wrong, with why."""
    body: dict[str, Any] = {"code": code, "message": message}
    if fields:
        body["fields"] = [{"field": field, "message": why} for field, why in fields]
    return AsciiJson({"error": body}, status_code=status, headers=None if headers is None else dict(headers))
