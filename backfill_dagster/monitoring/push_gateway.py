"""Hands metrics to a push gateway, from a thread of its own: no run waits for one that does not answer."""

from __future__ import annotations

import logging
import threading
from http.client import HTTPException
from typing import TYPE_CHECKING

from prometheus_client import push_to_gateway

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

JOB = "backfill"
# How long a gateway may take for anything, and how long the end of a stage waits for it; seconds.
ANSWER_SECONDS = 5.0
WAIT_SECONDS = 3.0


class PushGateway:
    """One study's group of metrics at a push gateway, replaced by each push; the study is the group's `instance`."""

    def __init__(self, address: str, study: str, registry: CollectorRegistry, *, every: float) -> None:
        self._address = address
        self._registry = registry
        self._study = study
        self._every = every
        self._changed = threading.Condition()
        self._asked = 0
        self._done = 0
        self._failing = False
        self._waited_in_vain = False
        self._closed = False
        self._thread = threading.Thread(target=self._push_again_and_again, name="push-gateway", daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Push now, and wait for that for a short while; not at all for a gateway that has failed before."""
        with self._changed:
            self._asked += 1
            wanted = self._asked
            self._changed.notify_all()
            if not (self._failing or self._waited_in_vain):
                came = self._changed.wait_for(lambda: self._done >= wanted or self._closed, WAIT_SECONDS)
                self._waited_in_vain = not came

    def close(self) -> None:
        """Push no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(2 * ANSWER_SECONDS)

    def _push_again_and_again(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._done or self._closed, self._every)
                if self._closed:
                    return
                answered = self._asked
            failure = self._try_to_push()
            with self._changed:
                if failure is not None and not self._failing:
                    logger.warning(
                        "the metrics cannot be handed to %s, which is tried again: %s", self._address, failure
                    )
                self._failing = failure is not None
                self._waited_in_vain &= self._failing
                self._done = max(self._done, answered)
                self._changed.notify_all()

    def _try_to_push(self) -> str | None:
        """Push, and return what went wrong."""
        try:
            push_to_gateway(
                self._address, JOB, self._registry, {"instance": self._study}, timeout=ANSWER_SECONDS
            )
        except (OSError, HTTPException, ValueError) as error:
            return str(error) or type(error).__name__
        return None
