"""A webserver that is down, slow, odd or hostile is a clear 502, 503 or 504, and never a 500."""

import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from backfill_dagster.api.errors import DagsterAnswerError, DagsterTimeoutError, DagsterUnreachableError
from backfill_dagster.api.graphql_client import GraphQL
from backfill_dagster_tests.api.serving_stub import OPERATIONS, ApiClient, study_yaml
from backfill_dagster_tests.api.stub_dagster import StubDagster

BODIES = {
    "/api/backfill/start": {"config": "demo"},
    "/api/backfill/configs": {"yaml": study_yaml("pilot")},
}


def down(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused by secret-host")


def slow(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("")


def not_taken(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectTimeout("")


def broken_off(_: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("")


def saying(status: int, content: bytes) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, content=content)


def typename(name: str) -> Callable[[httpx.Request], httpx.Response]:
    """Answer whatever is asked with one member of its union, and nothing else."""
    fields = (
        *("repositoryOrError", "pipelineOrError", "launchRun", "runOrError", "runsOrError", "terminateRun"),
        *("reloadRepositoryLocation", "assetOrError", "logsForRun"),
    )
    data = {field: {"__typename": name, "message": "as it is"} for field in fields}
    return saying(200, json.dumps({"data": data}).encode())


ODD: dict[str, tuple[Callable[[httpx.Request], httpx.Response], int]] = {
    "down": (down, 503),
    "not_taken": (not_taken, 503),
    "slow": (slow, 504),
    "broken_off": (broken_off, 502),
    "html": (saying(200, b"<html>log in</html>"), 502),
    "redirect": (lambda _: httpx.Response(302, headers={"location": "https://login.test"}), 502),
    "forbidden": (saying(403, b"no"), 502),
    "error": (saying(500, b'{"errors": [{"message": "boom"}]}'), 502),
    "empty": (saying(200, b""), 502),
    "list": (saying(200, b"[]"), 502),
    "null": (saying(200, b'{"data": null}'), 502),
    "nothing": (saying(200, b'{"data": {}}'), 502),
    "deep": (saying(200, b"[" * 100_000), 502),
    "halved": (saying(200, b'{"errors": [{"message": "\\ud800"}]}'), 502),
    "PythonError": (typename("PythonError"), 502),
    "UnauthorizedError": (typename("UnauthorizedError"), 502),
    "Repository": (typename("Repository"), 502),
    "Run": (typename("Run"), 502),
    "unheard_of": (typename("SomethingNew"), 502),
}


@pytest.mark.parametrize("odd", ODD)
def test_whatever_the_webserver_does_is_a_clear_answer(
    api: ApiClient, dagster: StubDagster, odd: str
) -> None:
    dagster.instead, status = ODD[odd]
    for method, path, _ in OPERATIONS:
        body = BODIES.get(path) if method == "POST" else None
        answer = api.ask(method, path, json=body)
        assert answer.status_code == status, (method, path, answer.text)
        error = answer.json()["error"]
        assert error["code"].startswith("dagster_")
        assert error["message"]
        assert "secret-host" not in answer.text
        assert [path.name for path in dagster.configs.iterdir()] == ["demo.yaml"]


@pytest.mark.parametrize(
    "asked", ["Jobs", "Launch", "Run", "Runs", "Terminate", "Reload", "Observed", "Events"]
)
def test_an_answer_that_lacks_something_is_odd_at_every_question(
    api: ApiClient, dagster: StubDagster, asked: str
) -> None:
    run = dagster.run("other", status="FAILURE" if asked == "Events" else "STARTED")
    dagster.stage(run, "fetch")
    transport = dagster.transport()

    def lacking(request: httpx.Request) -> httpx.Response:
        dagster.instead = None
        answer = transport.handle_request(request)
        dagster.instead = lacking
        if dagster.asked[-1] != asked:
            return answer
        [(field, value)] = answer.json()["data"].items()
        return httpx.Response(200, json={"data": {field: {"__typename": value["__typename"]}}})

    dagster.instead = lacking
    answers = [
        api.ask("GET", f"/api/backfill/status/{run.id}"),
        api.ask("DELETE", f"/api/backfill/jobs/{run.id}"),
        api.start(config="demo"),
        api.store(study_yaml("pilot")),
    ]
    assert asked in dagster.asked
    assert {answer.status_code for answer in answers} <= {200, 201, 202, 409, 502}
    # That a run was ended and a location reloaded needs no more words than that; an asset may never have told of any.
    assert any(answer.status_code == 502 for answer in answers) or asked in (
        "Terminate",
        "Reload",
        "Observed",
    )


def test_a_location_that_is_not_there_or_cannot_be_loaded(api: ApiClient, dagster: StubDagster) -> None:
    dagster.instead = typename("RepositoryNotFoundError")
    answer = api.ask("GET", "/api/backfill/configs")
    assert answer.status_code == 502
    assert "no code location 'backfill_dagster'" in answer.json()["error"]["message"]


def graphql(handler: Callable[[httpx.Request], httpx.Response], seconds: float = 5) -> GraphQL:
    return GraphQL(
        "http://user:hunter2@dagster.test", timeout_seconds=seconds, transport=httpx.MockTransport(handler)
    )


def test_an_answer_in_drops_ends_at_the_time_out() -> None:
    def drops() -> Iterator[bytes]:
        for _ in range(100):
            yield b" "
            time.sleep(0.02)

    started = time.monotonic()
    with pytest.raises(DagsterTimeoutError, match=r"within 0\.1 s"):
        graphql(lambda _: httpx.Response(200, content=drops()), seconds=0.1).ask("query A { b }", {})
    assert time.monotonic() - started < 1


def test_an_answer_without_end_is_cut() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 2**20

    with pytest.raises(DagsterAnswerError, match="more than"):
        graphql(lambda _: httpx.Response(200, content=endless())).ask("query A { b }", {})


def test_nobody_at_the_address_is_told_without_naming_it() -> None:
    with pytest.raises(DagsterUnreachableError) as caught:
        GraphQL("http://user:hunter2@127.0.0.1:9").ask("query A { b }", {})
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_what_is_asked_is_graphql_over_json() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"data": {"b": 1}})

    assert graphql(answer).ask("query A { b }", {"name": "value"}) == {"b": 1}
    assert asked[0].url.path == "/graphql"
    assert json.loads(asked[0].content) == {"query": "query A { b }", "variables": {"name": "value"}}
