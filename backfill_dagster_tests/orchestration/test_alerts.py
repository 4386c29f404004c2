"""Alerts: who is told of a failed run, what is said, and what is not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from backfill_dagster.definitions import build_defs
from backfill_dagster.orchestration import alerts
from backfill_dagster.orchestration.alerts import AlertError
from backfill_dagster.orchestration.tags import PARENT_TAG, STUDY_TAG
from backfill_dagster_tests.studies import sandbox_study

VARIABLE = "BACKFILL_ALERT_WEBHOOK"
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


class Chat:
    """A webhook on loopback that answers as it is told and keeps what it gets."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.messages: list[dict[str, Any]] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = chat.answers.pop(0) if chat.answers else 200
                if status == 200:
                    chat.messages.append(json.loads(body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/secret"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    chat = Chat()
    thread = threading.Thread(target=chat.server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(VARIABLE, chat.url)
    monkeypatch.setattr(alerts, "_PAUSE_SECONDS", 0.01)
    yield chat
    chat.server.shutdown()
    thread.join()
    chat.server.server_close()


@dg.job(tags={STUDY_TAG: "study"})
def breaks() -> None:
    @dg.op
    def step() -> None:
        raise dg.Failure(description=f"2 of 5 hosts could not be read whole; {DID} is one of theirs")

    step()


@pytest.fixture
def failed(tmp_path: Path) -> Iterator[tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]]:
    home = tmp_path / "instance"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance, breaks.execute_in_process(instance=instance, raise_on_error=False)


def evaluate(configs: Path, failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult], **tags: str) -> Any:
    instance, result = failed
    repository = build_defs(configs).get_repository_def()
    sensor = repository.get_sensor_def("study_failure_alert")
    run = result.dagster_run.with_tags({**result.dagster_run.tags, **tags})
    made = dg.build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_instance=instance,
        dagster_run=run,
        dagster_event=result.get_run_failure_event(),
    )
    with made.for_run_failure() as context:
        return sensor(context)


def test_a_failed_run_is_told_with_its_reason_and_a_link(
    tmp_path: Path, chat: Chat, failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]
) -> None:
    sandbox_study(tmp_path, monitoring={"ui_url": "https://dagster.example.org"})
    evaluate(tmp_path, failed)
    [message] = chat.messages
    assert set(message) == {"text"}
    assert "2 of 5 hosts could not be read whole" in message["text"]
    assert f"https://dagster.example.org/runs/{failed[1].run_id}" in message["text"]


def test_no_account_is_named(
    tmp_path: Path, chat: Chat, failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]
) -> None:
    sandbox_study(tmp_path)
    evaluate(tmp_path, failed)
    assert DID not in chat.messages[0]["text"]
    assert "(an account)" in chat.messages[0]["text"]


@pytest.mark.parametrize(
    "name", [DID, DID.upper(), DID.replace(":", "%3A"), "at://a.person.example.com/app.bsky.feed.post/3k"]
)
def test_no_account_is_named_however_it_is_written(
    tmp_path: Path, name: str, failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]
) -> None:
    body = alerts.alert_body(sandbox_study(tmp_path), failed[1].dagster_run, [f"it is '{name}' again"])
    assert body["text"].endswith("it is '(an account)' again")


def test_a_stage_of_a_whole_run_and_runs_of_others_are_not_told(
    tmp_path: Path, chat: Chat, failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]
) -> None:
    sandbox_study(tmp_path)
    assert isinstance(evaluate(tmp_path, failed, **{PARENT_TAG: "run"}), dg.SkipReason)
    assert isinstance(evaluate(tmp_path, failed, **{STUDY_TAG: "another"}), dg.SkipReason)
    assert chat.messages == []


def test_a_webhook_that_fails_for_a_moment_gets_the_message_once(
    tmp_path: Path, chat: Chat, failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]
) -> None:
    sandbox_study(tmp_path)
    chat.answers = [503, 429]
    evaluate(tmp_path, failed)
    assert len(chat.messages) == 1


@pytest.mark.parametrize("answers", [[404], [500, 500, 500]])
def test_a_webhook_that_refuses_is_an_error_that_keeps_its_address(
    tmp_path: Path,
    chat: Chat,
    failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult],
    answers: list[int],
) -> None:
    sandbox_study(tmp_path)
    chat.answers = list(answers)
    with pytest.raises(AlertError, match=f"HTTP {answers[-1]}") as raised:
        evaluate(tmp_path, failed)
    assert "secret" not in str(raised.value)
    assert chat.answers == []


def test_an_address_that_is_not_set_is_an_error_that_names_the_variable(
    tmp_path: Path,
    failed: tuple[dg.DagsterInstance, dg.ExecuteInProcessResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    sandbox_study(tmp_path)
    with pytest.raises(AlertError, match=VARIABLE):
        evaluate(tmp_path, failed)
