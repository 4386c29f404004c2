"""The messages of a study that are to be told and those that were, in the study's storage.

A message is stored before it is sent, so that it outlasts a webhook that is down and a process that ends. Which ones
were told is remembered, so that the run, its successor and a sensor do not tell the same thing again. A message that
was sent by a process which ended before it could note that is sent twice: better than not at all.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from backfill_dagster.errors import StorageError
from backfill_dagster.monitoring.webhook import AlertError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill_dagster.monitoring.alerts import Alert
    from backfill_dagster.storage import StudyStorage

FOLDER = "monitoring/alerts"
PENDING, TOLD = f"{FOLDER}/pending", f"{FOLDER}/told"
# What is older helps nobody any more; and what nobody takes must not fill the disk.
MAX_PENDING = 100
MAX_PENDING_SECONDS = 7 * 24 * 3600
# A run that is alerted about is over by then, or has been told of often enough.
MAX_TOLD = 1_000
MAX_TOLD_SECONDS = 90 * 24 * 3600


@dataclass(frozen=True, slots=True)
class _Message:
    """A message that waits: since which unix second, and for whom it is one of a kind."""

    key: str
    identity: str
    text: str
    since: float


class Outbox:
    """What a study has to tell; every method raises StorageError."""

    def __init__(self, storage: StudyStorage, clock: Callable[[], float] = time.time) -> None:
        self._storage = storage
        self._clock = clock

    def post(self, alert: Alert) -> bool:
        """Store a message, unless the same was told before or waits already; say whether it is new."""
        name = f"{sha256(alert.identity.encode()).hexdigest()[:24]}.json"
        with self._storage.alone(FOLDER):
            if any(self._storage.exists(f"{folder}/{name}") for folder in (PENDING, TOLD)):
                return False
            body = {"identity": alert.identity, "text": alert.text, "since": self._clock()}
            self._storage.write_bytes(f"{PENDING}/{name}", json.dumps(body).encode())
        if len(self._storage.keys(PENDING, "*.json")) > MAX_PENDING:
            self._sweep()
        return True

    def deliver(self, send: Callable[[str], None], *, patience: float = 0.0) -> int:
        """Send what waits, oldest first, and return how many; raises AlertError when one could not be sent.

        While another process is at it, this waits for it for `patience` seconds, and then leaves it to that.
        """
        self._sweep()
        if not self._storage.keys(PENDING, "*.json"):
            return 0
        with self._storage.attempt(PENDING, patience) as is_alone:
            if not is_alone:
                return 0
            sent = 0
            for message in self._pending():
                send(message.text)
                self._note_told(message)
                sent += 1
            return sent

    def pending(self) -> list[str]:
        """Return the texts of the messages that wait, oldest first."""
        return [message.text for message in self._pending()]

    def _note_told(self, message: _Message) -> None:
        told = {"identity": message.identity, "text": message.text, "since": self._clock()}
        name = message.key.rpartition("/")[2]
        self._storage.write_bytes(f"{TOLD}/{name}", json.dumps(told).encode())
        self._storage.remove(message.key)

    def _pending(self) -> list[_Message]:
        return sorted(self._messages(PENDING), key=lambda message: (message.since, message.key))

    def _messages(self, folder: str) -> Iterator[_Message]:
        for key in self._storage.keys(folder, "*.json"):
            try:
                body = json.loads(self._storage.read_bytes(key))
                yield _Message(key, str(body["identity"]), str(body["text"]), float(body["since"]))
            except StorageError:
                if self._storage.exists(key):
                    raise
                continue  # another process has just told it
            except (ValueError, KeyError, TypeError):
                # No file of ours; it would be in the way of all others for ever.
                self._storage.remove(key)

    def _sweep(self) -> None:
        """Forget what is too old, and of what is too many the oldest."""
        now = self._clock()
        for folder, most, age in (
            (PENDING, MAX_PENDING, MAX_PENDING_SECONDS),
            (TOLD, MAX_TOLD, MAX_TOLD_SECONDS),
        ):
            messages = sorted(self._messages(folder), key=lambda message: -message.since)
            for number, message in enumerate(messages):
                if number >= most or now - message.since > age:
                    self._storage.remove(message.key)


def tell(outbox: Outbox, alert: Alert, send: Callable[[str], None] | None, *, patience: float = 0.0) -> bool:
    """Store a message and send what waits; say whether the message is new. Raises AlertError and StorageError.

    Without a way to send it, it waits.
    """
    is_new = outbox.post(alert)
    if send is None:
        raise AlertError("there is no address to send messages to; they wait in the study's storage")
    outbox.deliver(send, patience=patience)
    return is_new
