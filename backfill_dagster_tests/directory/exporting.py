"""A PLC directory's export on loopback, of operations that a test makes up."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
BEGIN = datetime(2023, 3, 1, tzinfo=UTC)


def plc(number: int) -> str:
    return "did:plc:" + "".join(LETTERS[number // 32**place % 32] for place in range(24))


def written(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry(number: int, at: datetime | None = None, **fields: Any) -> dict[str, Any]:
    """Write the genesis operation of the account of this number; by default a second per number after BEGIN."""
    operation = {
        "type": "plc_operation",
        "verificationMethods": {"atproto": f"did:key:zKey{number}"},
        "rotationKeys": [],
        "alsoKnownAs": [f"at://n{number}.test"],
        "services": {
            "atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": "https://pds.example.com"}
        },
        "prev": None,
        "sig": "x",
        **fields,
    }
    return {
        "did": plc(number),
        "operation": operation,
        "cid": f"cid{number}",
        "nullified": False,
        "createdAt": written(at or BEGIN + timedelta(seconds=number)),
    }


def tombstone(number: int, at: datetime) -> dict[str, Any]:
    operation = {"type": "plc_tombstone", "prev": f"cid{number}", "sig": "x"}
    return {**entry(number, at), "operation": operation, "cid": f"tombstone{number}"}


@dataclass
class Export:
    """Answers `/export` by time, as the directory does, and notes what was asked after.

    `answers` are given in its stead to the requests of these numbers; from `fails_from` on, all fail.
    """

    entries: Sequence[dict[str, Any]]
    asked: list[str] = field(default_factory=list)
    answers: dict[int, web.Response] = field(default_factory=dict)
    fails_from: int | None = None

    async def __call__(self, request: web.Request) -> web.Response:
        number = len(self.asked)
        self.asked.append(request.query.get("after", ""))
        if request.path != "/export" or (self.fails_from is not None and number >= self.fails_from):
            return web.Response(status=500)
        if number in self.answers:
            return self.answers[number]
        return lines(self.page(request.query))

    def page(self, query: Any) -> list[dict[str, Any]]:
        first = bisect_right(self.entries, query.get("after", ""), key=lambda entry: entry["createdAt"])
        return list(self.entries[first : first + min(int(query["count"]), 1000)])


def lines(entries: Sequence[dict[str, Any]], cut: int = 0) -> web.Response:
    """Answer with these operations, perhaps without the last bytes."""
    body = b"\n".join(json.dumps(entry).encode() for entry in entries)
    return web.Response(body=body[: len(body) - cut], content_type="application/jsonlines")
