"""What a YAML that comes over the network can and cannot do to the configs folder and the server."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from backfill_dagster.api.facade import _placeless
from backfill_dagster.config.study import Study
from backfill_dagster_tests.api.serving_stub import ApiClient, serving, study_yaml
from backfill_dagster_tests.api.stub_dagster import StubDagster

NAMES = (
    *("../evil", "..", ".", "", "a/b", "/etc/cron.d/evil", "configs/../../evil", "..\\evil", "evil\\..\\x"),
    *(
        "evil\x00",
        "evil.yaml",
        "evil.yaml\x00.txt",
        "evil%2f..",
        "%2e%2e%2fevil",
        "EVIL",
        "Evil",
        "évil",
        "ev il",
    ),
    *(
        "~evil",
        "-evil",
        "_evil",
        ".evil",
        "evil\n",
        "evil.",
        "C:evil",
        "file:///evil",
        "a" * 42,
        "\uff0e\uff0e\uff0fevil",
        "evil/",
    ),
    *("class", "config", "int", "input", "evil_refresh", "evil_purge", "ev__il", "a_stage_b"),
)


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_anywhere_but_to_a_file_of_the_folder(
    api: ApiClient, dagster: StubDagster, tmp_path: Path, name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    text = json.dumps({"backfill": {"name": name, "source": {"type": "inline", "dids": ["x"]}}})
    stored = api.store(text)
    assert stored.status_code == 422, stored.text
    assert api.start(yaml=text).status_code == 422
    # Words that Dagster keeps for itself have a name's form, so that there is merely none of them.
    assert api.start(config=name).status_code in (422, 404)
    assert sorted(tmp_path.rglob("*")) == before
    assert set(dagster.asked) <= {"Jobs"}


@pytest.mark.parametrize("name", [None, 7, 1.5, True, ["a"], {"a": 1}])
def test_a_name_that_is_no_text_is_none(api: ApiClient, configs: Path, name: Any) -> None:
    assert api.store(yaml.safe_dump({"backfill": {"name": name}})).status_code == 422
    assert list(entries(configs)) == ["demo.yaml"]


def test_a_config_is_stored_whole_and_loaded(api: ApiClient, dagster: StubDagster, configs: Path) -> None:
    text = study_yaml("pilot", description="Ünïcode kept")
    answer = api.store(text)
    assert (answer.status_code, answer.json()) == (201, {"name": "pilot", "created": True})
    assert entries(configs)["pilot.yaml"] == text.encode()
    assert sorted(entries(configs)) == ["demo.yaml", "pilot.yaml"]
    assert dagster.asked == ["Jobs", "Reload", "Jobs"]
    again = api.store(text)
    assert (again.status_code, again.json()) == (201, {"name": "pilot", "created": False})
    listed = api.ask("GET", "/api/backfill/configs", token="reader").json()["configs"]
    assert [(config["name"], config["state"]) for config in listed] == [("demo", "ready"), ("pilot", "ready")]


@pytest.mark.parametrize("there", ["pilot.yaml", "PILOT.yaml", "Pilot.YAML", "pilot.yml"])
def test_nothing_that_is_there_is_replaced(api: ApiClient, configs: Path, there: str) -> None:
    (configs / there).write_text("mine")
    answer = api.store(study_yaml("pilot"))
    assert answer.status_code == 409
    assert there in answer.json()["error"]["message"]
    assert entries(configs)[there] == b"mine"
    assert len(entries(configs)) == 2


@pytest.mark.parametrize("exists", [True, False])
def test_no_symlink_is_followed(api: ApiClient, configs: Path, tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "elsewhere"
    text = study_yaml("pilot")
    if exists:
        target.write_text(text)
    (configs / "pilot.yaml").symlink_to(target)
    assert api.store(text).status_code == 409
    assert target.exists() is exists
    assert (configs / "pilot.yaml").is_symlink()


def test_two_at_once_cannot_both_be_the_first(
    api: ApiClient, dagster: StubDagster, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(source: str, target: Path) -> None:
        # Between the look and the deed somebody puts a file there by hand.
        target.write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert api.store(study_yaml("pilot")).status_code == 409
    assert entries(configs)["pilot.yaml"] == b"theirs"
    assert sorted(entries(configs)) == ["demo.yaml", "pilot.yaml"]


def test_a_folder_that_cannot_be_written_is_said_without_its_place(
    api: ApiClient, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(configs))

    monkeypatch.setattr(os, "link", full)
    answer = api.store(study_yaml("pilot"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "configs_unwritable")
    assert str(configs) not in answer.text
    assert list(entries(configs)) == ["demo.yaml"]


def test_what_dagster_does_not_take_is_taken_away_again(
    api: ApiClient, dagster: StubDagster, configs: Path
) -> None:
    dagster.refuses["pilot"] = "backfill.automation.refresh_cron: means no time"
    answer = api.store(study_yaml("pilot"))
    assert answer.status_code == 422
    assert "pilot.yaml: backfill.automation.refresh_cron: means no time" in answer.json()["error"]["message"]
    assert str(configs) not in answer.text
    assert list(entries(configs)) == ["demo.yaml"]
    assert dagster.asked[-1] == "Reload"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "backfill",
        "backfill: 7",
        "other: {name: pilot}",
        "{unclosed",
        "a: &a [1]\nb: *a",
        "\x00",
        "!!python/object/apply:os.system ['true']",
        "backfill: !!python/name:os.system",
        "---\nbackfill: {name: pilot}\n---\nbackfill: {name: other}",
        study_yaml("pilot").replace("name: pilot", "name: pilot\n  name: other"),
        study_yaml("pilot") + "other: 1\n",
        study_yaml("pilot", nonsense=1),
        study_yaml("pilot", source={"type": "text"}),
        "[" * 5_000,
        "backfill: " + "{a: " * 200 + "1" + "}" * 200,
        json.dumps({"backfill": {f"k{number}": 1 for number in range(1_001)}}),
        "backfill: {name: pilot, version: 2024-99-99, source: {type: inline, dids: [a]}}",
        "? [a, b]\n: 1",
        "<<: 1",
        "backfill: {<<: [1, 2]}",
        "=: 1",
        "backfill: {name: pilot, x: !!binary '?'}",
        "backfill: {name: pilot, x: !!timestamp 'x'}",
        "backfill: {name: pilot, x: !!int 'x'}",
        "backfill: !!set {a, b}",
        f"backfill: {{name: pilot, x: 1{':1' * 400}.0}}",
        f"backfill: {{name: pilot, x: 1{':1' * 3_000}}}",
        f"backfill: {{name: pilot, x: 0x{'f' * 20_000}}}",
        "backfill: {name: pilot, 2024-01-01: 1}",
        'backfill: {name: pilot, storage: {path: "data\\0"}}',
        study_yaml("pilot", description="x").replace("x\n", '"\\ud800"\n'),
        study_yaml("pilot", time_range={"start_date": "0001-01-01T00:00:00+14:00"}),
        study_yaml("pilot", owners=[{"a": 1}] * 1_000),
    ],
)
def test_what_is_no_study_is_refused_and_nothing_stored(
    api: ApiClient, dagster: StubDagster, configs: Path, text: str
) -> None:
    answer = api.store(text)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["message"]
    assert "/tmp" not in answer.text
    assert list(entries(configs)) == ["demo.yaml"]
    assert dagster.asked == []


def test_a_complaint_is_no_longer_than_can_be_read(api: ApiClient) -> None:
    answer = api.store(study_yaml("pilot", owners=[[]] * 5_000))
    assert answer.status_code == 422
    assert len(answer.text) < 5_000


def test_one_file_of_which_nothing_can_be_made_does_not_hide_the_others(
    api: ApiClient, configs: Path
) -> None:
    (configs / "odd.yaml").write_text("backfill: {2024-01-01: 1}\n")
    answer = api.ask("GET", "/api/backfill/configs")
    assert answer.status_code == 200
    assert [config["name"] for config in answer.json()["configs"]] == ["demo", "odd"]


def test_the_folder_is_taken_out_of_a_complaint_however_long_it_is() -> None:
    assert _placeless("/srv/x/pilot.yaml: is wrong, 'configs/a.yml'") == "pilot.yaml: is wrong, 'a.yml'"
    started = time.process_time()
    long = "/a" * 50_000
    assert _placeless(f"{long} {long}") == f"{long} {long}"
    assert time.process_time() - started < 1


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{number}: &a{number} [*a{number - 1}, *a{number - 1}]\n" for number in range(1, 60)
)


def test_a_yaml_that_grows_is_refused_before_it_does(api: ApiClient) -> None:
    answer = api.store(f"{BOMB}backfill: {{name: pilot, owners: *a59}}")
    assert answer.status_code == 422
    assert "aliases" in answer.json()["error"]["message"]


def test_the_servers_environment_cannot_be_read(
    dagster: StubDagster, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_SECRET", "hunter2")
    monkeypatch.setenv("LISTS", "a list")
    asking = study_yaml("pilot", description="${SERVER_SECRET}")
    key = study_yaml("pilot", **{"${SERVER_SECRET}": 1})
    with serving(dagster, BACKFILL_API_VARIABLES="LISTS") as api:
        for text in (asking, key, asking.replace("SERVER", "NO_SUCH")):
            answer = api.store(text)
            assert answer.status_code == 422
            assert "hunter2" not in answer.text
            assert "BACKFILL_API_VARIABLES" in answer.json()["error"]["message"]
        assert api.store(asking.replace("SERVER_SECRET", "LISTS")).status_code == 201
    # It is filled in when it is read, and not in the file.
    assert b"${LISTS}" in entries(configs)["pilot.yaml"]


COLLECTED = {
    "type": "collected",
    "backfill": "demo",
    "metadata_store": {
        "type": "dynamodb",
        "table_name": "abc",
        "region": "us-east-2",
        "endpoint_url": "http://10.0.0.1:80",
    },
}


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"source": {"type": "text", "path": "/etc/passwd"}}, "source.path"),
        ({"source": {"type": "text", "path": "../secret.txt"}}, "source.path"),
        ({"source": {"type": "csv", "path": "data/../dagster.yaml"}}, "source.path"),
        ({"source": {"type": "parquet", "path": "/srv/*.parquet"}}, "source.path"),
        ({"source": {"type": "sqlite", "path": ".dagster/runs.db"}}, "source.path"),
        ({"source": {"type": "handles", "path": "/etc/hosts"}}, "source.path"),
        ({"source": {"type": "asset", "backfill": "demo", "storage": "/srv"}}, "source.storage"),
        (
            {"source": {"type": "union", "sources": [{"type": "text", "path": "/etc/passwd"}]}},
            "source.sources.0.path",
        ),
        ({"exclude": {"type": "text", "path": "/etc/passwd"}}, "exclude.path"),
        (
            {"filters": {"app.bsky.feed.post": {"uris": {"type": "text", "path": "/etc/passwd"}}}},
            "filters.app.bsky.feed.post.uris.path",
        ),
        (
            {"derived": {"posts_used_in_feeds": {"feeds": {"type": "csv", "path": "/etc/passwd"}}}},
            "derived.posts_used_in_feeds.feeds.path",
        ),
        ({"storage": {"path": "/srv"}}, "storage.path"),
        ({"storage": {"path": "data/demo"}}, "storage.path"),
        ({"storage": {"path": "configs"}}, "storage.path"),
        ({"storage": {"path": "."}}, "storage.path"),
        ({"storage": {"type": "s3", "path": "s3://bucket/lab"}}, "storage.type"),
        ({"network": {"allow_private_addresses": True}}, "network.allow_private_addresses"),
        ({"network": {"connect_to": {"a.test:443": "127.0.0.1:22"}}}, "network.connect_to"),
        ({"network": {"dns_server": "127.0.0.1:53"}}, "network.dns_server"),
        ({"monitoring": {"log_file": "data/demo/accounts.parquet"}}, "monitoring.log_file"),
        ({"monitoring": {"prometheus_textfile": "data/x.prom"}}, "monitoring.prometheus_textfile"),
        ({"monitoring": {"prometheus_pushgateway": "http://10.0.0.1"}}, "monitoring.prometheus_pushgateway"),
        ({"monitoring": {"prometheus_address": "0.0.0.0"}}, "monitoring.prometheus_address"),
        ({"metadata_store": {"path": "data/demo/accounts.parquet"}}, "metadata_store.path"),
        (
            {"metadata_store": {"type": "dynamodb", "table_name": "abc", "region": "us-east-2"}},
            "metadata_store.type",
        ),
        (
            {"integrations": {"consumers": {"a": {"type": "sqlite", "tables": ["posts"], "path": "data/x"}}}},
            "integrations.consumers.a.path",
        ),
        ({"monitoring": {"alert_webhook_variable": "AWS_SECRET"}}, "monitoring.alert_webhook_variable"),
        ({"sharing": {"salt_variable": "AWS_SECRET"}}, "sharing.salt_variable"),
        ({"source": COLLECTED}, "source.metadata_store.endpoint_url"),
        (
            {"exclude": {"type": "union", "sources": [COLLECTED]}},
            "exclude.sources.0.metadata_store.endpoint_url",
        ),
    ],
)
def test_no_file_and_no_private_network_is_reached(
    api: ApiClient, configs: Path, parts: dict[str, Any], field: str
) -> None:
    answer = api.store(study_yaml("pilot", **parts))
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(f"backfill.{field}")
    assert list(entries(configs)) == ["demo.yaml"]


@pytest.mark.parametrize("folder", ["data", "configs"])
def test_a_symlink_out_of_an_allowed_folder_is_followed_to_its_end(
    api: ApiClient, tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "list.txt").symlink_to("/etc/passwd")
    answer = api.store(study_yaml("pilot", source={"type": "text", "path": f"{folder}/list.txt"}))
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "parts",
    [
        {"source": {"type": "text", "path": "configs/dids.txt"}},
        {"source": {"type": "text", "path": "./data/lists/dids.txt"}},
        {"source": {"type": "asset", "backfill": "demo"}},
        {"storage": {"path": "./data"}},
        {"network": {"sandbox": {"seed": 1}}},
        {"monitoring": {"alert_webhook_variable": "BACKFILL_ALERT_WEBHOOK", "alert_on_failure": True}},
    ],
)
def test_what_a_study_needs_is_allowed(api: ApiClient, parts: dict[str, Any]) -> None:
    assert api.store(study_yaml("pilot", **parts)).status_code == 201


def test_a_file_that_was_put_there_by_hand_is_listed_with_what_is_wrong(
    api: ApiClient, dagster: StubDagster, configs: Path
) -> None:
    (configs / "later.yaml").write_text(study_yaml("later"))
    (configs / "wrong.yaml").write_text(study_yaml("wrong", nonsense=1))
    (configs / "Odd Name.yaml").write_text("x")
    listed = api.ask("GET", "/api/backfill/configs").json()["configs"]
    assert [(config["name"], config["state"]) for config in listed] == [
        ("demo", "ready"),
        ("later", "not_loaded"),
        ("wrong", "invalid"),
    ]
    assert "backfill.nonsense = 1: unknown key" in listed[2]["error"]
    assert str(configs) not in listed[2]["error"]


def test_a_value_that_the_environment_filled_in_is_not_shown(
    api: ApiClient, configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_SECRET", "hunter2")
    (configs / "wrong.yaml").write_text(study_yaml("wrong", time_range={"start_date": "${SERVER_SECRET}"}))
    for answer in (api.ask("GET", "/api/backfill/configs"), api.start(config="wrong")):
        assert "time_range.start_date" in answer.text
        assert "hunter2" not in answer.text


def test_every_address_that_a_study_can_name_is_one_that_was_thought_of() -> None:
    """Whoever adds one decides whether a YAML from the network may set it (`untrusted._FILE_ONLY`)."""
    named = {
        field
        for field in addresses(Study)
        if not field.startswith(("source", "exclude", "filters", "derived"))
    }
    assert named == {
        *("network.plc_url", "network.plc_export.mirrors", "network.dns_server", "network.connect_to"),
        *("network.allow_private_addresses", "monitoring.prometheus_address"),
        *("monitoring.prometheus_pushgateway", "monitoring.ui_url", "metadata_store.endpoint_url"),
        "storage.endpoint_url",
    }


def addresses(model: type[BaseModel], field: str = "") -> Iterator[str]:
    """Yield the fields of a model, at any depth, whose name or type says that they are addresses."""
    for name, info in model.model_fields.items():
        place = f"{field}.{name}".lstrip(".")
        if re.search(r"url|address|origin|gateway|mirror|endpoint|server|connect_to|webhook_url", name):
            yield place
        for kind in [info.annotation, *get_args(info.annotation)]:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from addresses(kind, place)
