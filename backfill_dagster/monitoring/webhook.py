"""Posting a message to a webhook, whose address is a secret: no error and no log line repeats it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from backfill_dagster.errors import BackfillError

if TYPE_CHECKING:
    from collections.abc import Callable

TRIES = 3
_TIMEOUT_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
# What a webhook that has too much to do may ask of us between two tries.
_LONGEST_PAUSE = 10.0
# httpx would write the address into every log that listens.
logging.getLogger("httpx").setLevel(logging.WARNING)


class AlertError(BackfillError):
    """A message could not be delivered."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that takes messages as Slack, Mattermost, Rocket.Chat and Discord (at its /slack) read them.

    Times are in seconds; a try as a whole takes no longer than `timeout`. A redirect is not followed: it would take the
    message to somebody else.
    """

    address: str
    tries: int = TRIES
    timeout: float = _TIMEOUT_SECONDS
    pause: float = _PAUSE_SECONDS
    sleep: Callable[[float], object] = time.sleep

    def __repr__(self) -> str:
        return "Webhook(...)"

    def send(self, text: str) -> None:
        """Post a message, trying again when the address fails; raises AlertError, which does not name it."""
        said, wish = "", 0.0
        for number in range(self.tries):
            if number:
                self.sleep(max(self.pause * 2**number, wish))
            try:
                status, wish = asyncio.run(self._post(text))
            except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError) as error:
                said = type(error).__name__
                continue
            if 200 <= status < 300:
                return
            said = f"HTTP {status}"
            if status < 500 and status not in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT):
                break
        raise AlertError(f"the alert's webhook did not take the message: {said}")

    async def _post(self, text: str) -> tuple[int, float]:
        """Return the answer's status and the pause that it asks for."""
        # A limit of the whole, which httpx itself has not: an answer can come a byte at a time for ever.
        async with httpx.AsyncClient(timeout=None, follow_redirects=False) as client:  # noqa: S113
            request = client.build_request(
                "POST", self.address, json={"text": text}, headers={"accept-encoding": "identity"}
            )
            async with asyncio.timeout(self.timeout):
                answer = await client.send(request, stream=True)
            # Of the answer only the head is read: its body can be as long, and as slow, as it likes.
            await answer.aclose()
            return answer.status_code, _wished_pause(answer)


def _wished_pause(answer: httpx.Response) -> float:
    stated = answer.headers.get("retry-after", "").strip()
    return min(float(stated), _LONGEST_PAUSE) if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", stated) else 0.0
