import threading
from pathlib import Path

import pytest

from backfill_dagster.monitoring import outbox as outbox_module
from backfill_dagster.monitoring.alerts import Alert, AlertKind
from backfill_dagster.monitoring.outbox import MAX_PENDING, MAX_PENDING_SECONDS, PENDING, TOLD, Outbox, tell
from backfill_dagster.monitoring.webhook import AlertError
from backfill_dagster.storage import StudyStorage


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Chat:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.is_down = False

    def __call__(self, text: str) -> None:
        if self.is_down:
            raise AlertError("HTTP 503")
        self.texts.append(text)


@pytest.fixture
def storage(tmp_path: Path) -> StudyStorage:
    return StudyStorage(tmp_path / "study")


def alert(number: int = 1, subject: str = "") -> Alert:
    return Alert(AlertKind.FAILURE, f"run-{number}", f"text {number}", subject)


def test_a_message_is_told_once_whoever_posts_it(storage: StudyStorage) -> None:
    chat = Chat()
    assert tell(Outbox(storage), alert(), chat)
    assert not tell(Outbox(storage), alert(), chat)
    assert tell(Outbox(storage), alert(subject="a host"), chat)
    assert tell(Outbox(storage), alert(2), chat)
    assert chat.texts == ["text 1", "text 1", "text 2"]


def test_what_a_webhook_does_not_take_waits_and_is_sent_in_order(storage: StudyStorage) -> None:
    chat, clock = Chat(), Clock()
    chat.is_down = True
    for number in (1, 2, 3):
        with pytest.raises(AlertError):
            tell(Outbox(storage, clock), alert(number), chat)
    assert Outbox(storage, clock).pending() == ["text 1", "text 2", "text 3"]
    chat.is_down = False
    assert Outbox(storage, clock).deliver(chat) == 3
    assert chat.texts == ["text 1", "text 2", "text 3"]
    assert Outbox(storage, clock).deliver(chat) == 0


def test_without_an_address_messages_wait(storage: StudyStorage) -> None:
    with pytest.raises(AlertError, match="no address"):
        tell(Outbox(storage), alert(), None)
    assert Outbox(storage).pending() == ["text 1"]


def test_what_is_too_old_or_too_much_is_dropped_oldest_first(storage: StudyStorage) -> None:
    clock, chat = Clock(), Chat()
    outbox = Outbox(storage, clock)
    outbox.post(alert(0))
    clock.now += MAX_PENDING_SECONDS
    for number in range(1, MAX_PENDING + 3):
        outbox.post(alert(number))
    assert len(outbox.pending()) == MAX_PENDING, "also if nobody can be told"
    outbox.deliver(chat)
    assert chat.texts == [f"text {number}" for number in range(3, MAX_PENDING + 3)]


def test_what_was_told_is_remembered_within_bounds(
    storage: StudyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_TOLD", 3)
    clock, chat = Clock(), Chat()
    for number in range(6):
        tell(Outbox(storage, clock), alert(number), chat)
    Outbox(storage, clock).deliver(chat)
    assert len(storage.keys(TOLD, "*.json")) == 3
    assert not Outbox(storage, clock).post(alert(5))


def test_a_process_that_ends_between_sending_and_noting_leaves_the_message(storage: StudyStorage) -> None:
    def killed(text: str) -> None:
        raise KeyboardInterrupt

    outbox = Outbox(storage)
    outbox.post(alert())
    with pytest.raises(KeyboardInterrupt):
        outbox.deliver(killed)
    assert outbox.pending() == ["text 1"]


def test_two_processes_do_not_send_the_same_message(storage: StudyStorage) -> None:
    outbox, began, may_end = Outbox(storage), threading.Event(), threading.Event()
    sent: list[str] = []

    def slowly(text: str) -> None:
        began.set()
        assert may_end.wait(5)
        sent.append(text)

    outbox.post(alert())
    thread = threading.Thread(target=lambda: outbox.deliver(slowly))
    thread.start()
    assert began.wait(5)
    assert Outbox(storage).deliver(sent.append) == 0
    may_end.set()
    assert Outbox(storage).deliver(sent.append, patience=5) == 0
    thread.join()
    assert sent == ["text 1"]


def test_a_file_of_something_else_is_in_nobodys_way(storage: StudyStorage) -> None:
    outbox, chat = Outbox(storage), Chat()
    outbox.post(alert())
    storage.write_bytes(f"{PENDING}/torn.json", b"{")
    storage.write_bytes(f"{PENDING}/list.json", b"[]")
    assert outbox.deliver(chat) == 1
    assert storage.keys(PENDING, "*.json") == []
