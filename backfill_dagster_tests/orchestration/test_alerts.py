"""Alerts: who is told of a failed run, what is said, and what is not."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from backfill_dagster.config.study import Study
from backfill_dagster.definitions import build_defs
from backfill_dagster.monitoring import webhook
from backfill_dagster.monitoring.alerts import Alert
from backfill_dagster.monitoring.audit_log import RunStatus
from backfill_dagster.monitoring.outbox import Outbox
from backfill_dagster.monitoring.structured_log import StructuredLog
from backfill_dagster.monitoring.webhook import AlertError
from backfill_dagster.orchestration.alerts import RunAlerts
from backfill_dagster.orchestration.progress import Standing
from backfill_dagster.orchestration.resources import LimitsResource
from backfill_dagster.orchestration.tags import PARENT_TAG, STUDY_TAG
from backfill_dagster.storage import StudyStorage
from backfill_dagster_tests.instances import local_instance
from backfill_dagster_tests.monitoring.webhook_server import Chat, running_chat
from backfill_dagster_tests.studies import sandbox_study

VARIABLE = "BACKFILL_ALERT_WEBHOOK"
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    with running_chat() as chat:
        monkeypatch.setenv(VARIABLE, chat.url)
        monkeypatch.setattr(webhook.Webhook, "send", _impatient(webhook.Webhook.send))
        yield chat


def _impatient(send: Any) -> Any:
    def sent(self: webhook.Webhook, text: str) -> None:
        send(webhook.Webhook(self.address, pause=0.001), text)

    return sent


@dg.job(tags={STUDY_TAG: "study"})
def breaks() -> None:
    @dg.op
    def step() -> None:
        raise dg.Failure(description=f"2 of 5 hosts could not be read whole; {DID} is one of theirs")

    step()


Failed = tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failed]:
    with local_instance(tmp_path_factory.mktemp("instance")) as instance:
        yield instance, breaks.execute_in_process(instance=instance, raise_on_error=False)


def evaluate(configs: Path, failed: Failed, **tags: str) -> Any:
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


def evaluate_pending(configs: Path, instance: dg.DagsterInstance) -> str:
    repository = build_defs(configs).get_repository_def()
    with dg.build_sensor_context(instance=instance, repository_def=repository) as context:
        return str(repository.get_sensor_def("study_pending_alerts").evaluate_tick(context).skip_message)


def test_a_failed_run_is_told_with_its_reason_and_a_link_and_once(
    tmp_path: Path, chat: Chat, failed: Failed
) -> None:
    sandbox_study(tmp_path, monitoring={"ui_url": "https://dagster.example.org"})
    assert evaluate(tmp_path, failed) is None
    assert isinstance(evaluate(tmp_path, failed), dg.SkipReason)
    [message] = chat.messages
    assert set(message) == {"text"}
    assert "2 of 5 hosts could not be read whole; (an account) is one of theirs" in message["text"]
    assert f"https://dagster.example.org/runs/{failed[1].run_id}" in message["text"]


def test_a_stage_of_a_whole_run_and_runs_of_others_are_not_told(
    tmp_path: Path, chat: Chat, failed: Failed
) -> None:
    sandbox_study(tmp_path)
    assert isinstance(evaluate(tmp_path, failed, **{PARENT_TAG: "run"}), dg.SkipReason)
    assert isinstance(evaluate(tmp_path, failed, **{STUDY_TAG: "another"}), dg.SkipReason)
    assert chat.messages == []


@pytest.mark.parametrize("answers", [[404], [500, 500, 500], [302]])
def test_what_the_webhook_does_not_take_is_said_and_sent_later(
    tmp_path: Path, chat: Chat, failed: Failed, answers: list[int]
) -> None:
    sandbox_study(tmp_path)
    chat.answers = list(answers)
    with pytest.raises(AlertError, match=f"HTTP {answers[-1]}; the message waits") as raised:
        evaluate(tmp_path, failed)
    assert "secret" not in str(raised.value)
    assert evaluate_pending(tmp_path, failed[0]) == "1 messages were delivered"
    assert evaluate_pending(tmp_path, failed[0]) == "no message waits"
    assert len(chat.messages) == 1
    assert isinstance(evaluate(tmp_path, failed), dg.SkipReason)


def test_an_address_that_is_not_set_is_an_error_that_names_the_variable(
    tmp_path: Path, failed: Failed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    study = sandbox_study(tmp_path)
    with pytest.raises(AlertError, match=VARIABLE):
        evaluate(tmp_path, failed)
    assert len(Outbox(StudyStorage(study.root)).pending()) == 1


def test_the_sensors_of_alerts_are_on_only_where_they_are_wanted(tmp_path: Path) -> None:
    sandbox_study(tmp_path, "quiet")
    sandbox_study(tmp_path, "parked", monitoring={"alert_parked_minutes": 5})
    sandbox_study(tmp_path, "failing", monitoring={"alert_on_failure": True})
    sensors = build_defs(tmp_path).get_repository_def().sensor_defs
    on = {one.name for one in sensors if one.default_status is dg.DefaultSensorStatus.RUNNING}
    assert {name for name in on if name.endswith(("alerts", "alert"))} == {
        "parked_pending_alerts",
        "failing_pending_alerts",
        "failing_failure_alert",
    }


def run_of(study: Study) -> dg.DagsterRun:
    return dg.DagsterRun(job_name=study.name, run_id="0123456789", tags={STUDY_TAG: study.name})


def begin(study: Study) -> RunAlerts:
    watching = RunAlerts(study, run_of(study), StructuredLog(study.name, "0123456789"))
    watching.begin(study.monitoring, [])
    return watching


def wait_for(chat: Chat, number: int) -> None:
    deadline = time.monotonic() + 30
    while len(chat.messages) < number:
        assert time.monotonic() < deadline, chat.messages
        time.sleep(0.01)


def standing(done: int = 5, failed: int = 0) -> Standing:
    return Standing("accounts", done, 100, (), {"failed": failed, "failures_by_reason": {}}, 1.5)


def test_a_fetch_whose_loop_is_stuck_is_told_of_by_a_thread(tmp_path: Path, chat: Chat) -> None:
    study = sandbox_study(tmp_path, monitoring={"alert_stalled_minutes": 0.3 / 60})
    watching = begin(study)
    watching.begin_stage("repos")
    watching.follow(standing)
    begun = time.monotonic()
    # As busy as a loop that never ends, and getting no further.
    while not chat.messages and time.monotonic() - begun < 30:
        pass
    assert "study (run 01234567): repos has got no further for" in chat.texts[0]
    watching.end_stage()
    watching.end(RunStatus.SUCCESS, None)
    again = begin(study)
    again.begin_stage("repos")
    again.follow(standing)
    time.sleep(0.5)
    again.end_stage()
    again.end(RunStatus.SUCCESS, None)
    assert len(chat.messages) == 1, "told before, by another process of the run"


def test_a_stage_that_counts_nothing_is_at_work_while_it_says_something_or_the_processor_works(
    tmp_path: Path,
) -> None:
    study = sandbox_study(tmp_path, monitoring={"alert_stalled_minutes": 1})
    log, outbox = StructuredLog(study.name, "0123456789"), Outbox(StudyStorage(study.root))
    now, busy = 0.0, 0
    watching = RunAlerts(study, run_of(study), log, clock=lambda: now, busy_looks=lambda: busy)
    watching.begin_stage("posts")
    for _ in range(10):
        now += 50
        busy += 1
        watching.look()
        now += 50
        watching.note_life()
        watching.look()
    assert outbox.pending() == []
    now += 60
    watching.look()
    assert "posts has got no further for 60 seconds" in outbox.pending()[0]


def test_a_fetch_gets_no_further_by_talking(tmp_path: Path) -> None:
    study = sandbox_study(tmp_path, monitoring={"alert_stalled_minutes": 1})
    log, outbox = StructuredLog(study.name, "0123456789"), Outbox(StudyStorage(study.root))
    now = 0.0
    watching = RunAlerts(study, run_of(study), log, clock=lambda: now, busy_looks=lambda: int(now))
    watching.begin_stage("repos")
    watching.follow(standing)
    for _ in range(3):
        watching.note_life()
        watching.look()
        now += 30
    assert "repos has got no further" in outbox.pending()[0]


def test_failures_are_told_at_the_end_of_a_short_fetch(tmp_path: Path, chat: Chat) -> None:
    watching = begin(sandbox_study(tmp_path, monitoring={"alert_failed_share": 0.1}))
    watching.begin_stage("repos")
    watching.follow(lambda: standing(20, 5))
    watching.end_stage()
    watching.end(RunStatus.SUCCESS, None)
    assert "5 of 20 accounts tried so far have failed (25%, more than 10%)" in chat.texts[0]


def test_a_parked_host_is_told_of(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gates:
        def parked_hosts(self) -> dict[str, float]:
            return {"pds.slow.example": 900.0}

    monkeypatch.setattr(LimitsResource, "gates", lambda self: Gates())
    watching = begin(sandbox_study(tmp_path, monitoring={"alert_parked_minutes": 10 / 60}))
    wait_for(chat, 1)
    watching.end(RunStatus.SUCCESS, None)
    assert "pds.slow.example has asked to be left alone for 15 minutes" in chat.texts[0]


def test_a_run_tells_of_its_failure_and_a_canceled_one_does_not(tmp_path: Path, chat: Chat) -> None:
    study = sandbox_study(tmp_path, monitoring={"alert_on_failure": True})
    begin(study).end(RunStatus.CANCELED, "interrupted")
    assert chat.messages == []
    begin(study).end(RunStatus.FAILED, f"{DID} broke")
    assert "failed" in chat.texts[0]
    assert DID not in chat.texts[0]


def test_a_message_that_waits_is_sent_by_the_next_run(tmp_path: Path, chat: Chat) -> None:
    study = sandbox_study(tmp_path, monitoring={"alert_on_failure": True})
    chat.answers = [500] * 6
    begin(study).end(RunStatus.FAILED, "first")
    assert chat.messages == []
    chat.answers = []
    begin(study).end(RunStatus.SUCCESS, None)
    assert len(chat.messages) == 1


def test_a_full_disk_does_not_keep_a_message_back(
    tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfill_dagster.stores.local.HEADROOM_BYTES", 2**62)
    begin(sandbox_study(tmp_path, monitoring={"alert_on_failure": True})).end(RunStatus.FAILED, "disk full")
    assert len(chat.messages) == 1


def test_what_cannot_be_looked_at_or_stored_ends_neither_the_stage_nor_the_looking(
    tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = begin(sandbox_study(tmp_path, monitoring={"alert_failed_share": 0.1}))
    watching.begin_stage("repos")

    def broken() -> Standing:
        raise ZeroDivisionError

    watching.follow(broken)
    watching.end_stage()
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "post", _no_files)
        watching.begin_stage("repos")
        watching.follow(lambda: standing(20, 5))
        watching.end_stage()
    watching.end(RunStatus.SUCCESS, None)
    assert "5 of 20 accounts tried so far have failed" in chat.texts[0]


def _no_files(self: Outbox, alert: Alert) -> bool:
    raise OSError(errno.EMFILE, "too many open files")


@dg.job(tags={STUDY_TAG: "study"})
def is_interrupted() -> None:
    @dg.op
    def step() -> None:
        raise dg.DagsterExecutionInterruptedError

    step()


def test_a_run_that_was_interrupted_is_not_told_of(tmp_path: Path, chat: Chat) -> None:
    sandbox_study(tmp_path, monitoring={"alert_on_failure": True})
    with local_instance(tmp_path / "instance") as instance:
        result = is_interrupted.execute_in_process(instance=instance, raise_on_error=False)
        assert isinstance(evaluate(tmp_path, (instance, result)), dg.SkipReason)
    assert chat.messages == []
