"""What the sandbox was asked, so that tests can say what was fetched, how often and when."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class LoggedRequest:
    """One request. While it runs, `status` is 0 and `ended` None.

    `started` and `ended` are in seconds of `time.monotonic()`. `body_bytes` is the length of the body that was
    to be sent, before compression.
    """

    host: str
    method: str
    path: str
    did: str | None
    user_agent: str
    started: float
    status: int = 0
    body_bytes: int = 0
    ended: float | None = None


class RequestLog:
    """All requests since the start or the last `clear`, in the order of their arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[LoggedRequest] = []

    def begin(self, *, host: str, method: str, path: str, did: str | None, user_agent: str) -> LoggedRequest:
        """Note the arrival of a request."""
        request = LoggedRequest(host, method, path, did, user_agent, time.monotonic())
        with self._lock:
            self._requests.append(request)
        return request

    def all(
        self, *, host: str | None = None, path: str | None = None, did: str | None = None
    ) -> list[LoggedRequest]:
        """List the requests to a host, for a path (or its end), about a DID; left out, any."""
        with self._lock:
            requests = list(self._requests)
        return [
            request
            for request in requests
            if (host is None or request.host == host)
            and (path is None or request.path.endswith(path))
            and (did is None or request.did == did)
        ]

    def count(self, *, host: str | None = None, path: str | None = None, did: str | None = None) -> int:
        """Count what `all` lists."""
        return len(self.all(host=host, path=path, did=did))

    def clear(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._requests.clear()

    def most_within(self, seconds: float, *, host: str | None = None, path: str | None = None) -> int:
        """Return the largest number of requests that arrived within any window of so many seconds.

        A window has its beginning and not its end, and may lie anywhere: the number is exact.
        """
        arrivals = sorted(request.started for request in self.all(host=host, path=path))
        most = first = 0
        for last, arrival in enumerate(arrivals):
            while arrival - arrivals[first] >= seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def most_at_once(self, *, host: str | None = None, path: str | None = None) -> int:
        """Return the largest number of requests that were under way at one moment.

        One that ends in the moment in which another arrives counts with it; one that runs yet has no end.
        """
        requests = self.all(host=host, path=path)
        ends = deque(sorted(request.ended for request in requests if request.ended is not None))
        most = under_way = 0
        for arrival in sorted(request.started for request in requests):
            while ends and ends[0] < arrival:
                ends.popleft()
                under_way -= 1
            under_way += 1
            most = max(most, under_way)
        return most
