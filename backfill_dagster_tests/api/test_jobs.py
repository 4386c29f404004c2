"""Start, look at and cancel jobs, in front of a stub that knows runs and nothing of how they are done."""

import json
import uuid
from typing import Any

import pytest

from backfill_dagster.api.models import RunSettings
from backfill_dagster.config.processing import Processing
from backfill_dagster.orchestration.run_settings import FetchSettings
from backfill_dagster.orchestration.tags import STARTED_BY_TAG, STUDY_TAG
from backfill_dagster_tests.api.serving_stub import ApiClient, study_yaml
from backfill_dagster_tests.api.stub_dagster import StubDagster, step_failure

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


@pytest.mark.parametrize(
    ("mode", "job"),
    [
        (None, "demo"),
        ("backfill", "demo"),
        ("refresh", "demo_refresh"),
        ("retry_failed", "demo_retry_failed"),
        ("rebuild", "demo_rebuild"),
    ],
)
def test_a_stored_config_is_started(api: ApiClient, dagster: StubDagster, mode: str | None, job: str) -> None:
    answer = api.ask(
        "POST",
        "/api/backfill/start",
        token="runner",
        json={"config": "demo", **({"mode": mode} if mode else {})},
    )
    assert answer.status_code == 202, answer.text
    [run] = dagster.runs
    assert answer.json() == {
        "job_id": run.id,
        "config": "demo",
        "mode": mode or "backfill",
        "state": "queued",
    }
    assert run.job == job
    assert run.tags == {STUDY_TAG: "demo", STARTED_BY_TAG: "api:runner"}
    # The job's own configuration, which Dagster takes when it is given none.
    assert json.loads(run.config) == {}


def test_settings_are_put_into_the_jobs_own_configuration(api: ApiClient, dagster: StubDagster) -> None:
    dagster.presets["demo"] = (
        "loggers: {console: {config: {log_level: DEBUG}}}\n"
        "ops: {demo__fetch_hosts: {config: {max_retries: 3, requests_per_second: 9}}, demo__other: {config: {a: 1}}}"
    )
    settings = {"requests_per_second": 2, "only_dids": [f" {DID} "], "max_run_minutes": 5}
    assert api.start(config="demo", settings=settings).status_code == 202
    assert json.loads(dagster.runs[0].config) == {
        "loggers": {"console": {"config": {"log_level": "DEBUG"}}},
        "ops": {
            "demo__fetch_hosts": {
                "config": {
                    "max_retries": 3,
                    "requests_per_second": 2.0,
                    "only_dids": [DID],
                    "max_run_minutes": 5.0,
                }
            },
            "demo__other": {"config": {"a": 1}},
        },
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"config": "demo", "yaml": "x"}, "body"),
        ({"config": "demo", "nonsense": 1}, "body.nonsense"),
        ({"config": "demo", "mode": "purge"}, "body.mode"),
        ({"config": "demo", "settings": {"requests_per_second": 0}}, "body.settings.requests_per_second"),
        ({"config": "demo", "settings": {"requests_per_second": "inf"}}, "body.settings.requests_per_second"),
        ({"config": "demo", "settings": {"only_dids": ["alice.test"]}}, "body.settings.only_dids.0"),
        ({"config": "demo", "settings": {"mode": "failed"}}, "body.settings.mode"),
        ({"config": "demo", "mode": "rebuild", "settings": {"max_retries": 1}}, "body"),
        ({"config": 7}, "body.config"),
        (["demo"], "body"),
    ],
)
def test_a_wrong_request_is_told_which_field(
    api: ApiClient, dagster: StubDagster, body: Any, field: str
) -> None:
    answer = api.ask("POST", "/api/backfill/start", json=body)
    assert answer.status_code == 422
    assert field in {item["field"] for item in answer.json()["error"]["fields"]}
    assert dagster.asked == []


def test_what_is_sent_is_not_repeated(api: ApiClient) -> None:
    answer = api.ask("POST", "/api/backfill/start", json={"config": "hunter2!", "mode": "hunter2"})
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


def test_the_settings_are_those_of_a_run(api: ApiClient) -> None:
    assert set(RunSettings.model_fields) - {"only_dids", "only_hosts"} <= set(Processing.model_fields)
    assert {"only_dids", "only_hosts"} == set(FetchSettings.model_fields)
    for name in set(RunSettings.model_fields) - {"only_dids", "only_hosts"}:
        bounds = [
            [repr(bound) for bound in model.model_fields[name].metadata if "inf" not in repr(bound)]
            for model in (RunSettings, Processing)
        ]
        assert bounds[0] == bounds[1], name


def test_an_unknown_config_is_not_found(api: ApiClient, dagster: StubDagster) -> None:
    answer = api.start(config="nobody")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert dagster.loads == 1


@pytest.mark.parametrize("job", ["demo_refresh", "demo_purge", "demo_rebuild"])
def test_no_job_but_that_of_a_config_is_started_by_its_name(
    api: ApiClient, dagster: StubDagster, job: str
) -> None:
    assert api.start(config=job).status_code == 404
    assert dagster.runs == []


def test_a_config_that_dagster_has_not_loaded_yet_is_loaded(api: ApiClient, dagster: StubDagster) -> None:
    (dagster.configs / "later.yaml").write_text(study_yaml("later"))
    assert api.start(config="later").status_code == 202
    assert dagster.loads == 2


def test_a_config_that_is_wrong_is_a_conflict(api: ApiClient, dagster: StubDagster) -> None:
    (dagster.configs / "wrong.yaml").write_text(study_yaml("wrong", nonsense=1))
    answer = api.start(config="wrong")
    assert answer.status_code == 409
    assert "backfill.nonsense = 1: unknown key" in answer.json()["error"]["message"]
    assert (dagster.configs / "wrong.yaml").exists()


def test_a_whole_yaml_is_stored_and_started_once(api: ApiClient, dagster: StubDagster) -> None:
    first = api.start(yaml=study_yaml("pilot"))
    assert (first.status_code, first.json()["config"]) == (202, "pilot")
    second = api.start(yaml=study_yaml("pilot"))
    assert second.status_code == 409
    assert first.json()["job_id"] in second.json()["error"]["message"]
    assert len(dagster.runs) == 1


@pytest.mark.parametrize("status", ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_nothing_is_started_beside_a_job_at_work(api: ApiClient, dagster: StubDagster, status: str) -> None:
    run = dagster.run(status=status)
    answer = api.start(config="demo")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert run.id in answer.json()["error"]["message"]


def test_jobs_that_are_over_of_others_or_of_command_lines_are_in_nobodys_way(
    api: ApiClient, dagster: StubDagster
) -> None:
    for status in ("SUCCESS", "FAILURE", "CANCELED"):
        dagster.run(status=status)
    dagster.run("other", status="STARTED")
    # It may have died; if it lives, it holds the study's lock.
    dagster.run(status="STARTED", location=None)
    assert api.start(config="demo").status_code == 202


def test_a_job_tells_where_it_stands(api: ApiClient, dagster: StubDagster) -> None:
    run = dagster.run(status="STARTED", started=2.0, tags={STARTED_BY_TAG: "api:ana"})
    before = dagster.run(status="SUCCESS", started=1.0, ended=1.5)
    earlier = dagster.stage(before, "fetch", status="SUCCESS", ended=1.4)
    directory = dagster.stage(run, "discover", status="SUCCESS", started=2.0, ended=2.5, created=2.0)
    dagster.tell(directory, "directory", 2.4, progress__dids_done=9, progress__dids_total=9)
    dagster.tell(earlier, "repos", 1.2, progress__accounts_done=1, progress__accounts_total=2)
    fetch = dagster.stage(run, "fetch", status="STARTED", started=3.0, created=3.0)
    status = api.ask("GET", f"/api/backfill/status/{run.id}", token="reader").json()
    assert (status["state"], status["stage"], status["started_by"]) == ("running", "fetch", "api:ana")
    assert status["progress"]["unit"] == "dids"
    assert status["counts"] is None
    dagster.tell(
        fetch,
        "repos",
        13.0,
        progress="1 of 4 accounts",
        progress__accounts_done=1,
        progress__accounts_total=4,
        progress__accounts_per_second=0.1,
        progress__seconds_to_go=None,
        progress__failures_by_reason={"timed_out": 1},
    )
    status = api.ask("GET", f"/api/backfill/status/{run.id}").json()
    assert status["progress"] == {
        "unit": "accounts",
        "done": 1,
        "total": 4,
        "percent": 25.0,
        "per_second": 0.1,
        "seconds_to_go": None,
        "at": "1970-01-01T00:00:13Z",
        "details": {"failures_by_reason": {"timed_out": 1}},
    }
    assert [(stage["stage"], stage["state"]) for stage in status["stages"]] == [
        ("discover", "succeeded"),
        ("fetch", "running"),
    ]


def test_a_job_that_is_over_tells_what_came_of_it(api: ApiClient, dagster: StubDagster) -> None:
    run = dagster.run(status="FAILURE", started=1.0, ended=9.0)
    accounts = dagster.stage(run, "accounts", status="SUCCESS", ended=8.0)
    metadata: dict[str, Any] = {
        "dagster__row_count": 3,
        "accounts_per_state": {"complete": 2, "failed": 1},
        "records_fetched": 10,
        "records_kept": 8,
        "records_filtered": 1,
        "records_rejected": 1,
        "undated": 2,
    }
    dagster.tell(accounts, "accounts", 8.5, **metadata)
    later = dagster.stage(dagster.run(status="SUCCESS", started=20.0, ended=30.0), "accounts")
    dagster.tell(later, "accounts", 25.0, **{**metadata, "records_kept": 9})
    run.events = [
        {"__typename": "LogMessageEvent"},
        step_failure(
            "demo__summary", f"1 host could not be read whole, at://{DID}/app.bsky.feed.post/3k of {DID}"
        ),
        {"__typename": "RunFailureEvent", "message": "Steps failed", "error": None},
    ]
    status = api.ask("GET", f"/api/backfill/status/{run.id}").json()
    assert status["state"] == "failed"
    assert status["stage"] is None
    assert status["counts"] == {
        "accounts": 3,
        "accounts_by_state": {"complete": 2, "failed": 1},
        "records_fetched": 10,
        "records_kept": 8,
        "records_filtered": 1,
        "records_rejected": 1,
        "undated": 2,
    }
    [error] = status["errors"]
    assert error["step"] == "demo__summary"
    assert error["message"].startswith("1 host could not be read whole")
    assert "did:plc" not in error["message"]


@pytest.mark.parametrize(
    "told", [{"progress__x_total": 3}, {"progress__x_done": "a", "progress__x_total": 3}]
)
def test_a_job_that_tells_of_itself_in_another_form(
    api: ApiClient, dagster: StubDagster, told: dict[str, Any]
) -> None:
    run = dagster.run(status="STARTED")
    dagster.tell(dagster.stage(run, "fetch", status="STARTED"), "repos", **told)
    answer = api.ask("GET", f"/api/backfill/status/{run.id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "dagster_answer")


def test_a_run_that_fails_before_any_step_says_why(api: ApiClient, dagster: StubDagster) -> None:
    run = dagster.run(status="FAILURE")
    run.events = [{"__typename": "RunFailureEvent", "message": "The process is gone.", "error": None}]
    status = api.ask("GET", f"/api/backfill/status/{run.id}").json()
    assert status["errors"] == [{"step": None, "message": "The process is gone."}]


@pytest.mark.parametrize("status", ["QUEUED", "STARTED", "CANCELING"])
def test_a_job_is_canceled(api: ApiClient, dagster: StubDagster, status: str) -> None:
    run = dagster.run(status=status)
    answer = api.ask("DELETE", f"/api/backfill/jobs/{run.id}", token="runner")
    assert (answer.status_code, answer.json()) == (202, {"job_id": run.id, "state": "canceling"})
    # It is told so once.
    assert dagster.asked.count("Terminate") == (status != "CANCELING")


def test_what_is_over_or_a_part_is_not_canceled(api: ApiClient, dagster: StubDagster) -> None:
    run = dagster.run(status="STARTED")
    stage = dagster.stage(run, "fetch", status="STARTED")
    over = dagster.run(status="SUCCESS")
    for other, said in ((stage, "cancel that one"), (over, "the job is over: it succeeded")):
        answer = api.ask("DELETE", f"/api/backfill/jobs/{other.id}")
        assert answer.status_code == 409
        assert said in answer.json()["error"]["message"]
    assert "Terminate" not in dagster.asked


def test_the_stage_that_a_canceled_job_was_in_is_canceled_too(api: ApiClient, dagster: StubDagster) -> None:
    run = dagster.run(status="CANCELED", started=1.0, ended=2.0)
    dagster.stage(run, "discover", status="SUCCESS", created=1.0)
    killed = dagster.stage(run, "fetch", status="FAILURE", created=2.0)
    killed.tags["dagster/failure_reason"] = "UNEXPECTED_TERMINATION"
    stages = api.ask("GET", f"/api/backfill/status/{run.id}").json()["stages"]
    assert [stage["state"] for stage in stages] == ["succeeded", "canceled"]


def test_runs_of_others_are_not_there(api: ApiClient, dagster: StubDagster) -> None:
    foreign = dagster.run()
    foreign.tags = {"team": "other"}
    for job_id in (foreign.id, str(uuid.uuid4())):
        assert api.ask("GET", f"/api/backfill/status/{job_id}").status_code == 404
        assert api.ask("DELETE", f"/api/backfill/jobs/{job_id}").status_code == 404
    assert "Terminate" not in dagster.asked
    assert foreign.status == "QUEUED"


@pytest.mark.parametrize("job_id", ["x", "..", "7F2B1B52-8D4E-4F0C-9A43-2F3C1D0A5B11", "%00", "a" * 36, "*"])
def test_what_is_no_id_is_refused_unasked(api: ApiClient, dagster: StubDagster, job_id: str) -> None:
    assert api.ask("GET", f"/api/backfill/status/{job_id}").status_code in (404, 422)
    assert api.ask("DELETE", f"/api/backfill/jobs/{job_id}").status_code in (404, 422)
    assert dagster.asked == []
