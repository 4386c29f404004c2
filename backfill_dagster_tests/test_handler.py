"""The AWS Lambda handler: whatever the event, an answer, and never an exception."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backfill_dagster import handler
from backfill_dagster.api.environment import FacadeSettings
from backfill_dagster.api.facade import Backfills
from backfill_dagster.api.waiting import Waiting
from backfill_dagster.handler import lambda_handler
from backfill_dagster.orchestration.tags import STARTED_BY_TAG
from backfill_dagster_tests.api.serving_stub import facade_settings, stub_backfills, study_yaml
from backfill_dagster_tests.api.stub_dagster import StubDagster

DID, OTHER = "did:plc:ewvi7nxzyoun6zhxrhs64oiz", "did:plc:z72i7hdynmk6r22z27h6tvur"
CONTEXT = SimpleNamespace(function_name="backfill function")


@pytest.fixture
def dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubDagster:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("default", "demo"):
        text = study_yaml(name, time_range={"start_date": "2024-09-27", "end_date": "2024-12-02"})
        (tmp_path / "configs" / f"{name}.yaml").write_text(text)
    stub = StubDagster(tmp_path / "configs")

    @contextmanager
    def connected(_: FacadeSettings) -> Iterator[Backfills]:
        with stub_backfills(stub, facade_settings()) as backfills:
            yield backfills

    monkeypatch.setattr(Backfills, "connected", connected)
    return stub


def answer(event: Any) -> dict[str, Any]:
    answered = lambda_handler(event, CONTEXT)
    # As it goes over the wire.
    return dict(json.loads(json.dumps(answered)))


@pytest.mark.parametrize(
    ("event", "only"),
    [
        (None, None),
        ({}, None),
        ({"mode": "backfill", "dids": "all"}, None),
        ({"dids": "ALL "}, None),
        ({"dids": DID}, [DID]),
        ({"dids": f"{DID}, {OTHER},"}, [DID, OTHER]),
        ({"dids": [DID, f" {OTHER} "]}, [DID, OTHER]),
    ],
)
def test_a_backfill_is_started_for_whoever_is_named(
    dagster: StubDagster, event: Any, only: list[str] | None
) -> None:
    answered = answer(event)
    [run] = dagster.runs
    assert answered == {
        "status": "success",
        "mode": "backfill",
        "config": "default",
        "job_id": run.id,
        "state": "queued",
    }
    assert run.tags[STARTED_BY_TAG] == "lambda:backfill_function"
    config = json.loads(run.config)
    assert (config["ops"]["default__fetch_hosts"]["config"]["only_dids"] if config else None) == only


def test_skip_backfill_fetches_nothing_and_builds_the_tables(dagster: StubDagster) -> None:
    assert answer({"config": "demo", "skip_backfill": True})["status"] == "success"
    assert [run.job for run in dagster.runs] == ["demo_rebuild"]


def test_the_period_is_the_configs(dagster: StubDagster) -> None:
    same = {"start_date": "2024-09-27", "end_date": "2024-12-02"}
    assert answer(same)["status"] == "success"
    other = answer({"start_date": "2024-10-01-00:00:00"})
    assert other["status"] == "error"
    assert other["message"].startswith(
        "event.start_date = 2024-10-01 00:00:00: the period of default has 2024-09-27 00:00:00 here"
    )
    assert len(dagster.runs) == 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"mode": "delete"}, "event.mode = 'delete': must be 'backfill' or 'determine_dids_to_backfill'"),
        ({"dids": "alice.test"}, "event.dids.0 = 'alice.test': is no DID of an account (not_a_did)"),
        ({"dids": [DID, "did:plc:x"]}, "event.dids.1 = 'did:plc:x': is no DID of an account (bad_plc)"),
        ({"dids": ""}, "event.dids = '': must be 'all', a DID"),
        ({"dids": " , "}, "event.dids = ' , ': must be 'all', a DID"),
        ({"dids": []}, "event.dids = []: must be 'all', a DID"),
        ({"dids": None}, "event.dids = None: must be 'all', a DID"),
        ({"dids": 7}, "event.dids = 7: "),
        ({"dids": {"a": 1}}, "event.dids = {'a': 1}: "),
        ({"start_date": "soon"}, "event.start_date = 'soon': must be YYYY-MM-DD"),
        ({"end_date": 7}, "event.end_date = 7: must be YYYY-MM-DD"),
        ({"skip_backfill": "maybe"}, "event.skip_backfill = 'maybe': must be a valid boolean"),
        ({"config": "../evil"}, "event.config = '../evil': "),
        ({"config": 7}, "event.config = 7: must be a valid string"),
        ({"did": DID}, f"event.did = '{DID}': is not known; allowed are mode, config, dids"),
        ({"dids": "x" * 10_000}, "event.dids.0 = 'xxx"),
        ("backfill", "event = 'backfill': must be a valid dictionary"),
        ([], "event = []: must be a valid dictionary"),
        (7, "event = 7: "),
        ({"config": "nobody"}, "config = 'nobody': there is no such config"),
    ],
)
def test_what_is_wrong_is_told_by_field_and_value(dagster: StubDagster, event: Any, message: str) -> None:
    answered = answer(event)
    assert answered["status"] == "error"
    assert answered["message"].startswith(message)
    assert len(answered["message"]) < 1_000
    assert dagster.runs == []


def test_it_tells_whom_a_backfill_would_be_for(dagster: StubDagster) -> None:
    answered = answer({"mode": "determine_dids_to_backfill", "config": "demo"})
    assert answered == {
        "status": "success",
        "mode": "determine_dids_to_backfill",
        "config": "demo",
        "dids": [DID],
        "count": 1,
        "asked": 1,
    }
    stranger = answer({"mode": "determine_dids_to_backfill", "config": "demo", "dids": OTHER})
    assert stranger["message"].startswith(f"dids = '{OTHER}': is no account of the source of demo")
    skipped = answer({"mode": "determine_dids_to_backfill", "config": "demo", "skip_backfill": True})
    assert skipped["dids"] == []
    assert dagster.runs == []
    assert dagster.asked == []


def test_with_a_period_it_tells_whom_the_accounts_engaged_with(
    dagster: StubDagster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def engaged(_: Backfills, config: str, start: Any, end: Any) -> list[str]:
        asked.append((config, str(start), end))
        return [OTHER]

    monkeypatch.setattr(Backfills, "engaged", engaged)
    event = {"mode": "determine_dids_to_backfill", "config": "demo", "start_date": "2024-10-01"}
    answered = answer(event)
    assert (answered["dids"], answered["engaged_dids"], answered["engaged_count"]) == ([DID], [OTHER], 1)
    assert asked == [("demo", "2024-10-01 00:00:00+00:00", None)]
    backwards = answer({**event, "end_date": "2024-09-30"})
    assert backwards["message"].startswith("event.start_date = 2024-10-01 00:00:00: is after end_date")


def test_an_answer_that_lambda_could_not_send_is_cut(
    dagster: StubDagster, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = [f"did:plc:{number:024}" for number in range(handler.MOST_DIDS + 5)]
    monkeypatch.setattr(Backfills, "waiting", lambda *_: Waiting(everybody, len(everybody)))
    monkeypatch.setattr(Backfills, "engaged", lambda *_: everybody)
    answered = answer({"mode": "determine_dids_to_backfill", "start_date": "2024-10-01"})
    assert answered["engaged_truncated"] is True
    assert (len(answered["dids"]), answered["count"], answered["truncated"]) == (
        handler.MOST_DIDS,
        len(everybody),
        True,
    )
    assert len(json.dumps(answered)) < 6 * 2**20


def test_nothing_is_ever_raised(dagster: StubDagster, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(Backfills, "start", fails)
    assert answer({}) == {
        "status": "error",
        "message": "unexpected RuntimeError: see the function's log",
    }
    monkeypatch.setenv("BACKFILL_DAGSTER_URL", "nowhere")
    assert answer({})["message"].startswith("BACKFILL_DAGSTER_URL: must be")
