"""Metrics on a port, at a push gateway and in a file; and a run that does not care if none of these can be had."""

from __future__ import annotations

import http.server
import logging
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from backfill_dagster.config.operation import Monitoring
from backfill_dagster.monitoring import push_gateway
from backfill_dagster.monitoring.exposition import Exposition
from backfill_dagster_tests.monitoring.scraped import Scraped

if TYPE_CHECKING:
    from collections.abc import Iterator


STUDY = "shown"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def counted(registry: CollectorRegistry) -> Counter:
    return Counter("counted_total", "What the tests count.", registry=registry)


@pytest.fixture
def exposition(registry: CollectorRegistry) -> Iterator[Exposition]:
    shown = Exposition(registry, every=0.1)
    yield shown
    shown.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_metrics_are_served_from_the_first_stage_on(exposition: Exposition, counted: Counter) -> None:
    port = free_port()
    wanted = Monitoring(prometheus_port=port)
    for number in (1, 2):
        exposition.begin(STUDY, wanted)
        counted.inc()
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert Scraped(text).sum("counted_total") == number


def test_a_port_that_is_taken_is_told_of_once_and_taken_later(
    exposition: Exposition, counted: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        wanted = Monitoring(prometheus_port=port)
        exposition.begin(STUDY, wanted)
        exposition.begin(STUDY, wanted)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"127.0.0.1:{port}" in caplog.text
    exposition.begin(STUDY, wanted)
    assert "counted_total" in httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_they_are_served_where_the_study_says() -> None:
    assert Monitoring().prometheus_address == "127.0.0.1"
    assert Monitoring(prometheus_address="::1").prometheus_address == "::1"
    with pytest.raises(ValueError, match="must be an IP address"):
        Monitoring(prometheus_address="everywhere")


def test_the_textfile_is_replaced_as_a_whole(
    tmp_path: Path, exposition: Exposition, registry: CollectorRegistry, counted: Counter
) -> None:
    many = Counter("many_total", "Enough for several writes.", ["number"], registry=registry)
    for number in range(1000):
        many.labels(number).inc()
    path = tmp_path / "collected" / "shown.prom"
    path.parent.mkdir()
    exposition.begin(STUDY, Monitoring(prometheus_textfile=path))
    exposition.refresh()
    seen: set[int] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_text().count("many_total{"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        counted.inc()
        exposition.refresh()
    over.set()
    reader.join()
    assert seen == {1000}
    assert Scraped(path.read_text()).sum("counted_total") == 20
    assert [file.name for file in path.parent.iterdir()] == ["shown.prom"]


def test_the_textfile_is_written_while_a_stage_goes_on(
    tmp_path: Path, exposition: Exposition, counted: Counter
) -> None:
    path = tmp_path / "shown.prom"
    exposition.begin(STUDY, Monitoring(prometheus_textfile=path))
    counted.inc(7)
    deadline = time.monotonic() + 10
    while not (path.exists() and Scraped(path.read_text()).sum("counted_total") == 7):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_textfile_that_cannot_be_written_is_told_of_once(
    tmp_path: Path, exposition: Exposition, caplog: pytest.LogCaptureFixture
) -> None:
    exposition.begin(STUDY, Monitoring(prometheus_textfile=tmp_path / "nowhere" / "shown.prom"))
    exposition.refresh()
    exposition.refresh()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "nowhere" in caplog.text
    with pytest.raises(ValueError, match=r"must end in \.prom"):
        Monitoring(prometheus_textfile=Path("metrics.txt"))


class Gateway:
    """A push gateway on loopback: what was pushed to it, by path."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, str]] = []
        self.status = 200


@contextmanager
def push_gateway_on_loopback() -> Iterator[tuple[str, Gateway]]:
    gateway = Gateway()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            gateway.pushed.append((self.path, body.decode()))
            self.send_response(gateway.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", gateway
        server.shutdown()
        thread.join()


def test_what_a_stage_came_to_is_pushed_when_it_ends(registry: CollectorRegistry, counted: Counter) -> None:
    with push_gateway_on_loopback() as (address, gateway):
        exposition = Exposition(registry, every=60)
        exposition.begin(STUDY, Monitoring(prometheus_pushgateway=address))
        counted.inc(3)
        exposition.refresh()
        [(path, text)] = gateway.pushed
        exposition.close()
    assert path == "/metrics/job/backfill/instance/shown"
    assert Scraped(text).sum("counted_total") == 3


def test_metrics_are_pushed_while_a_stage_goes_on(exposition: Exposition, counted: Counter) -> None:
    with push_gateway_on_loopback() as (address, gateway):
        exposition.begin(STUDY, Monitoring(prometheus_pushgateway=address))
        counted.inc(7)
        deadline = time.monotonic() + 10
        while not any("counted_total 7.0" in text for _, text in gateway.pushed):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        exposition.close()


def test_a_gateway_that_fails_is_told_of_once_until_it_works_again(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with push_gateway_on_loopback() as (address, gateway):
        exposition = Exposition(registry, every=60)
        exposition.begin(STUDY, Monitoring(prometheus_pushgateway=address))
        for status, times in ((500, 3), (200, 1), (500, 2)):
            gateway.status = status
            for _ in range(times):
                before = len(gateway.pushed)
                exposition.refresh()
                # Where it failed before, nobody waits for it.
                while len(gateway.pushed) == before:
                    time.sleep(0.01)
                time.sleep(0.05)
        exposition.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert address in caplog.text


@pytest.mark.parametrize("silent", [True, False])
def test_a_gateway_that_does_not_answer_holds_no_run_up(
    exposition: Exposition,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    silent: bool,
) -> None:
    monkeypatch.setattr(push_gateway, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(push_gateway, "ANSWER_SECONDS", 0.6)
    # One takes connections and says nothing; where the other was, nothing is.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not silent:
            server.close()
        started = time.monotonic()
        exposition.begin(STUDY, Monitoring(prometheus_pushgateway=f"http://127.0.0.1:{port}"))
        for _ in range(20):
            exposition.refresh()
        assert time.monotonic() - started < 0.9
        deadline = time.monotonic() + 10
        while not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        exposition.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
