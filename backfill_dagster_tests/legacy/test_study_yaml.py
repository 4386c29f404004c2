"""A YAML of the previous system becomes one of ours, and every one of its fields is told of."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from backfill_dagster import pipeline
from backfill_dagster.errors import ConfigError
from backfill_dagster.legacy.study_yaml import REPORT_NAME, FieldVerdict, convert_yaml, write_conversion
from backfill_dagster_tests.legacy.trees import ALICE, BOB, CAROL

STUDY_USERS = """
backfill:
  name: "backfill_study_users"
  version: "1.0"
  source:
    type: "sqlite"
    path: "{folder}/users.sqlite"
    metadata: str
  plc_storage:
    type: "sqlite"
    path: "plc.sqlite"
    metadata: str
  record_types:
    - "app.bsky.feed.post"
    - "app.bsky.feed.like"
  time_range:
    start_date: "2024-09-28-00:00:00"
    end_date: "2024-12-01-00:00:00"
  sync_storage:
    type: "parquet"
    path: ""
    metadata: ""
    min_timestamp: "2025-05-04-05:01:50"
"""
FILTERED = """
backfill:
  name: "Posts Liked-by users"
  version: 2
  source: {type: parquet, path: users.parquet}
  record_types: [app.bsky.feed.post, app.bsky.feed.threadgate]
  time_range: {start_date: "2024-09-01-00:00:00"}
  filters:
    record_type: "app.bsky.feed.post"
    subject: [uri]
    source: {type: parquet, path: uris.parquet, metadata: ""}
  sync_storage: {type: dynamodb, path: "/data/old", table: t}
  retries: 3
notes: none
"""


def yaml_of(folder: Path, text: str, name: str = "old.yaml") -> Path:
    path = folder / name
    path.write_text(text.replace("{folder}", str(folder)))
    return path


def verdicts(path: Path) -> dict[str, tuple[str, str | None]]:
    return {one.field: (one.verdict.value, one.into) for one in convert_yaml(path).fields}


def test_a_study_of_users(tmp_path: Path) -> None:
    old = yaml_of(tmp_path, STUDY_USERS)
    [study] = write_conversion([convert_yaml(old)], tmp_path / "configs")
    assert study.name == "backfill_study_users"
    assert study.record_types == ("app.bsky.feed.post", "app.bsky.feed.like")
    assert study.time_range.start_date == datetime(2024, 9, 28, tzinfo=UTC)
    assert study.time_range.end_date == datetime(2024, 12, 1, tzinfo=UTC)
    assert study.time_range.outside == "normalize"
    assert verdicts(old) == {
        "backfill.name": ("converted", "name"),
        "backfill.version": ("converted", "version"),
        "backfill.source.type": ("converted", "source.type"),
        "backfill.source.path": ("converted", "source.path"),
        "backfill.source.metadata": ("no_counterpart", None),
        "backfill.plc_storage.type": ("no_counterpart", None),
        "backfill.plc_storage.path": ("no_counterpart", None),
        "backfill.plc_storage.metadata": ("no_counterpart", None),
        "backfill.record_types": ("converted", "record_types"),
        "backfill.time_range.start_date": ("changed_meaning", "time_range.start_date"),
        "backfill.time_range.end_date": ("changed_meaning", "time_range.end_date"),
        "backfill.sync_storage.type": ("changed_meaning", "storage.type"),
        "backfill.sync_storage.path": ("no_counterpart", None),
        "backfill.sync_storage.metadata": ("no_counterpart", None),
        "backfill.sync_storage.min_timestamp": ("no_counterpart", None),
    }
    report = orjson.loads((tmp_path / "configs" / REPORT_NAME).read_bytes())
    assert [one["study"] for one in report] == ["backfill_study_users"]
    assert len(report[0]["fields"]) == 15
    assert all(field["note"] for field in report[0]["fields"] if field["verdict"] != "converted")


def test_the_queue_that_was_the_source_is_read(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "users.sqlite")) as database, database:
        database.execute(
            "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT, "
            "created_at TIMESTAMP, status TEXT)"
        )
        payloads = [[{"dids": [ALICE, BOB]}, {"dids": [CAROL]}], {"dids": [BOB]}, []]
        database.executemany(
            "INSERT INTO queue (payload) VALUES (?)", [(json.dumps(payload),) for payload in payloads]
        )
    [study] = write_conversion([convert_yaml(yaml_of(tmp_path, STUDY_USERS))], tmp_path / "configs")
    study = study.model_copy(update={"storage": study.storage.model_copy(update={"path": tmp_path / "data"})})
    collected = pipeline.collect_source(study)
    assert collected.dids["did"].to_list() == [ALICE, BOB, CAROL]
    assert collected.rejects["reason"].to_list() == ["duplicate"]


def test_filters_other_types_and_what_nobody_knows(tmp_path: Path) -> None:
    old = yaml_of(tmp_path, FILTERED)
    [study] = write_conversion([convert_yaml(old)], tmp_path / "configs")
    assert study.name == "posts_liked_by_users"
    assert study.version == "2"
    assert study.other_record_types == ("app.bsky.feed.threadgate",)
    assert study.time_range.end_date is None
    uris = study.filters["app.bsky.feed.post"].uris
    assert uris is not None
    assert uris.model_dump(exclude={"path"}) == {"type": "parquet", "column": "uri"}
    assert str(study.root.parent) == "/data/old"
    told = convert_yaml(old).fields
    found = verdicts(old)
    assert found["backfill.filters.subject"] == ("converted", "filters.app.bsky.feed.post.uris")
    assert {name for name, (verdict, _) in found.items() if verdict == "no_counterpart"} == {
        "notes",
        "backfill.filters.source.metadata",
        "backfill.sync_storage.type",
        "backfill.sync_storage.table",
        "backfill.retries",
    }
    assert Counter(one.field for one in told).most_common(1)[0][1] == 1
    assert found["backfill.record_types.1"] == ("changed_meaning", "other_record_types")


@pytest.mark.parametrize(
    ("filters", "fields"),
    [
        # A type without a table, none at all, one that is about no subject, and a list of a type that is unknown.
        ("{record_type: a.b.c, subject: [uri], source: {type: csv, path: u}}", 4),
        ("{record_type: [app.bsky.feed.post], subject: [uri], source: {type: csv, path: u}}", 4),
        ("{record_type: app.bsky.feed.post, source: {type: csv, path: u}}", 3),
        ("{record_type: app.bsky.feed.post, subject: [subject, uri], source: {type: csv, path: u}}", 4),
        ("{record_type: app.bsky.feed.like, subject: [uri], source: {type: mongodb, path: u}}", 4),
        ("{record_type: app.bsky.feed.like, subject: [uri], source: {type: csv}}", 3),
        ("{record_type: app.bsky.feed.like, subject: [uri], source: {}}", 3),
    ],
)
def test_of_a_filter_that_cannot_be_made_no_field_is_said_to_be_converted(
    tmp_path: Path, filters: str, fields: int
) -> None:
    old = yaml_of(tmp_path, f"backfill: {{name: x, source: {{type: csv, path: p}}, filters: {filters}}}")
    told = [one for one in convert_yaml(old).fields if one.field.startswith("backfill.filters")]
    assert [one.verdict for one in told] == [FieldVerdict.NO_COUNTERPART] * fields
    assert len({one.field for one in told}) == fields
    [study] = write_conversion([convert_yaml(old)], tmp_path / "configs")
    assert study.filters == {}


def test_empty_sections_are_told_of_too(tmp_path: Path) -> None:
    old = yaml_of(
        tmp_path,
        "backfill: {name: x, source: {type: csv, path: p}, plc_storage: {}, time_range: {}, sync_storage: {}}",
    )
    empty = {name: found for name, found in verdicts(old).items() if found[0] == "no_counterpart"}
    assert set(empty) == {"backfill.plc_storage", "backfill.time_range", "backfill.sync_storage"}


def test_what_our_yaml_cannot_say_leaves_nothing_in_the_way_of_the_next_attempt(tmp_path: Path) -> None:
    text = "backfill: {name: x, source: {type: csv, path: p}, time_range: {start_date: DATE}}"
    output = tmp_path / "configs"
    with pytest.raises(ConfigError, match=r"the converted x.yaml: backfill.time_range.start_date = 'soon'"):
        write_conversion([convert_yaml(yaml_of(tmp_path, text.replace("DATE", "soon")))], output)
    assert list(output.iterdir()) == []
    write_conversion([convert_yaml(yaml_of(tmp_path, text.replace("DATE", "2024-10-01")))], output)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must hold a mapping named `backfill`"),
        ("backfill: [1]", "must hold a mapping named `backfill`"),
        ("backfill: {name: x}", "backfill.source: is missing"),
        (
            "backfill: {name: x, source: {type: mongodb, path: p}}",
            "backfill.source.type = 'mongodb': a list is of type",
        ),
        ("backfill: {name: x, name: y}", "stands twice"),
        ("backfill: {name: !!python/object/apply:os.system ['true']}", "is not valid YAML"),
        (f"backfill: {'{a: ' * 3000}", "is not valid YAML"),
        ("# " + "x" * 1_000_001, "has 1,000,003 bytes"),
    ],
)
def test_what_is_no_yaml_of_the_previous_system(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        convert_yaml(yaml_of(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        convert_yaml(tmp_path / "missing.yaml")


def test_aliases_that_multiply_are_shown_short(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    text = "backfill:\n  source: {type: csv, path: p}\n  name: x\n" + "".join(f"  {line}\n" for line in lines)
    conversion = convert_yaml(yaml_of(tmp_path, text))
    assert all(len(one.value) < 2000 for one in conversion.fields)
    assert [one.field for one in conversion.fields if one.verdict is FieldVerdict.NO_COUNTERPART][
        -1
    ] == "backfill.a11"


def test_a_name_cannot_lead_elsewhere_and_a_yaml_is_not_written_over(tmp_path: Path) -> None:
    old = yaml_of(tmp_path, "backfill: {name: ../../Up, source: {type: csv, path: p.csv}}")
    output = tmp_path / "configs"
    [study] = write_conversion([convert_yaml(old)], output)
    assert study.name == "up"
    assert sorted(path.name for path in output.iterdir()) == [REPORT_NAME, "up.yaml"]
    write_conversion([convert_yaml(old)], output)
    (output / "up.yaml").write_text("backfill: {}")
    with pytest.raises(ConfigError, match="is there already, and says something else"):
        write_conversion([convert_yaml(old)], output)
    with pytest.raises(ConfigError, match="have the same name"):
        write_conversion([convert_yaml(old)] * 2, output)
