import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from backfill_dagster.monitoring.webhook import AlertError, Webhook
from backfill_dagster_tests.monitoring.webhook_server import Chat, running_chat


@pytest.fixture
def chat() -> Iterator[Chat]:
    with running_chat() as chat:
        yield chat


def test_a_message_is_posted_as_chats_read_it(chat: Chat) -> None:
    Webhook(chat.url).send("hello")
    assert chat.messages == [{"text": "hello"}]


def test_a_webhook_that_fails_for_a_moment_gets_the_message_once(chat: Chat) -> None:
    chat.answers = [503, 429]
    chat.headers = {"retry-after": "7"}
    pauses: list[float] = []
    Webhook(chat.url, pause=0.5, sleep=pauses.append).send("hello")
    assert chat.texts == ["hello"]
    assert pauses == [7, 7]


def test_a_wish_for_a_long_pause_is_not_heeded(chat: Chat) -> None:
    chat.answers, chat.headers = [429], {"retry-after": "86400"}
    pauses: list[float] = []
    Webhook(chat.url, sleep=pauses.append).send("hello")
    assert pauses == [10]


@pytest.mark.parametrize(("answers", "left"), [([404, 200], [200]), ([500, 500, 500, 200], [200])])
def test_a_webhook_that_refuses_is_an_error_that_keeps_its_address(
    chat: Chat, answers: list[int], left: list[int]
) -> None:
    chat.answers = answers
    webhook = Webhook(chat.url, pause=0.001)
    with pytest.raises(AlertError, match="HTTP") as raised:
        webhook.send("hello")
    assert "secret" not in f"{raised.value!r} {raised.value.__cause__!r} {webhook!r}"
    assert chat.answers == left


def test_a_redirect_is_not_followed(chat: Chat) -> None:
    chat.answers, chat.headers = [302], {"location": chat.url}
    with pytest.raises(AlertError, match="HTTP 302"):
        Webhook(chat.url).send("hello")
    assert chat.messages == []


def test_a_webhook_that_is_slow_or_gone_is_given_up(chat: Chat) -> None:
    chat.delay = 0.5
    begun = time.monotonic()
    with pytest.raises(AlertError, match="TimeoutError"):
        Webhook(chat.url, timeout=0.05, pause=0.001).send("hello")
    assert time.monotonic() - begun < 1
    with pytest.raises(AlertError, match="ConnectError"):
        Webhook("http://127.0.0.1:1/secret", pause=0.001).send("hello")


@pytest.mark.parametrize(
    "address", ["", "no address", "ftp://example.org/secret", "http://[", "http://\ud800/"]
)
def test_an_address_that_is_none_is_an_error_too(address: str) -> None:
    with pytest.raises(AlertError) as raised:
        Webhook(address, pause=0.001).send("hello")
    assert "secret" not in str(raised.value)


def test_an_answer_that_never_ends_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def trickle() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                for _ in range(200):
                    connection.sendall(b"x")
                    time.sleep(0.02)

        threading.Thread(target=trickle, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(AlertError, match="TimeoutError"):
            Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/secret", tries=1, timeout=0.3).send("hello")
        assert time.monotonic() - begun < 2
