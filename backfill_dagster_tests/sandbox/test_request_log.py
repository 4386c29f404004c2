from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from backfill_dagster.sandbox.faults import Stall
from backfill_dagster.sandbox.request_log import LoggedRequest, RequestLog

if TYPE_CHECKING:
    from backfill_dagster.sandbox.network import SandboxNetwork

    from .conftest import Ask


def log_of(*spans: tuple[float, float | None], host: str = "a.test", path: str = "/p") -> RequestLog:
    log = RequestLog()
    add(log, *spans, host=host, path=path)
    return log


def add(log: RequestLog, *spans: tuple[float, float | None], host: str, path: str = "/p") -> None:
    for started, ended in spans:
        request = log.begin(host=host, method="GET", path=path, did=None, user_agent="")
        request.started, request.ended = started, ended


def test_an_empty_log() -> None:
    assert (RequestLog().most_within(10), RequestLog().most_at_once()) == (0, 0)


def test_windows_lie_anywhere_and_do_not_have_their_end() -> None:
    log = log_of((0.0, 1), (0.9, 1), (1.0, 1), (1.8, 2), (5.0, 6))
    assert log.most_within(1.0) == 3
    assert log.most_within(0.05) == 1
    assert log.most_within(0.1 + 1e-9) == 2
    assert log.most_within(5.0) == 4
    assert log.most_within(5.0 + 1e-9) == 5


def test_hosts_and_paths_are_told_apart() -> None:
    log = log_of((0, 9), (1, 9), host="a.test")
    add(log, (0, 9), (1, 9), (2, 9), host="b.test", path="/q")
    assert [log.most_within(10, host=host) for host in (None, "a.test", "b.test", "c.test")] == [5, 2, 3, 0]
    assert [log.most_at_once(host=host) for host in (None, "a.test", "b.test", "c.test")] == [5, 2, 3, 0]
    assert (log.most_within(10, path="/q"), log.most_at_once(path="/q")) == (3, 3)


def test_requests_under_way() -> None:
    assert log_of((0, 1), (2, 3), (4, 5)).most_at_once() == 1
    assert log_of((0, 2), (1, 3), (2.5, 4)).most_at_once() == 2
    # One moment belongs to both, and what runs yet has no end.
    assert log_of((0, 1), (1, 2)).most_at_once() == 2
    assert log_of((1, 1), (1, 1)).most_at_once() == 2
    assert log_of((0, None), (5, 6), (7, 8)).most_at_once() == 2


def test_both_agree_with_counting_at_every_moment() -> None:
    rng = random.Random(8)
    for _ in range(200):
        spans = []
        for _ in range(rng.randrange(12)):
            start = rng.randrange(20)
            spans.append((start, rng.choice([None, start + rng.randrange(6)])))
        log, width = log_of(*spans), rng.randrange(1, 8)
        starts = [start for start, _ in spans]
        # Some window of most requests begins with one of them.
        windows = [sum(first <= start < first + width for start in starts) for first in starts]
        assert log.most_within(width) == max(windows, default=0)
        moments = [
            sum(start <= moment and (end is None or moment <= end) for start, end in spans)
            for moment in range(30)
        ]
        assert log.most_at_once() == max(moments, default=0)


def test_many_requests_are_counted_fast() -> None:
    log = log_of(*((number / 1000, number / 1000 + 5) for number in range(20_000)))
    started = time.process_time()
    assert log.most_within(10) in (10_000, 10_001)  # the sums of fractions are not exact
    assert log.most_at_once() in (5_000, 5_001, 5_002)
    assert time.process_time() - started < 2


def test_real_requests(network: SandboxNetwork, ask: Ask) -> None:
    host, other = network.hosts[:2]
    network.faults.set_host(host, Stall(0, 0.2))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: ask(host, "/xrpc/_health"), range(4)))
    for _ in range(3):
        ask(other, "/xrpc/_health")
    assert network.requests.most_at_once(host=host) == 4
    assert network.requests.most_at_once(host=other) == 1
    assert network.requests.most_within(60, host=host) == 4
    assert network.requests.most_within(60) == 7
    found = network.requests.all()[0]
    assert isinstance(found, LoggedRequest)
